// Calls of kernels that wait to be run one after another, with nothing of Python's in between.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "../../ops/checks.h"
#include "kernel_table.h"

namespace moelens {

// A call, and the tensors that it uses, which live as long as it does.
struct Call {
    std::function<void(const Context&)> run;
    std::vector<pybind11::object> tensors;
};

// The thread that defers calls has them added here; those of other threads run at once. All but `run` needs the GIL.
class Calls {
  public:
    using Times = std::vector<std::pair<double, double>>;

    void defer(bool wanted) {
        deferring_ = wanted;
        thread_ = std::this_thread::get_id();
    }
    bool are_deferred() const { return deferring_ && are_of_this_thread(); }
    bool are_of_this_thread() const { return thread_ == std::this_thread::get_id(); }

    template <class Run>
    void add(const Arguments& arguments, const Run& run) {
        waiting_.push_back({run, arguments.tensors()});
        waiting_bytes_ += arguments.activation_bytes();
        ++count_;
    }
    // Bytes of activations that those that wait use, counted by each.
    int64_t waiting_bytes() const { return waiting_bytes_; }
    std::vector<Call> take() {
        waiting_bytes_ = 0;
        return std::exchange(waiting_, {});
    }

    // Runs a call and notes when; one that throws has no time.
    void run(const Call& call, const Context& context) {
        const double start = seconds();
        call.run(context);
        times_.emplace_back(start, seconds());
    }
    // Calls that were added, and the times of those that ran, since the times were taken last.
    int64_t count() const { return count_; }
    Times take_times() {
        count_ = 0;
        return std::exchange(times_, {});
    }

  private:
    // Of the clock that Python's time.perf_counter reads.
    static double seconds() {
        return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    }

    bool deferring_ = false;
    std::thread::id thread_;
    std::vector<Call> waiting_;
    int64_t waiting_bytes_ = 0;
    int64_t count_ = 0;
    Times times_;
};

}  // namespace moelens
