// Calls of kernels that run one after another, with nothing of Python's in between, while Python adds more of them.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <chrono>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "../../ops/checks.h"
#include "kernel_table.h"
#include "pause.h"

namespace moelens {

// A call, and the tensors that it uses, which live as long as it does.
struct Call {
    std::function<void(const Context&)> run;
    std::vector<pybind11::object> tensors;
};

// The thread that defers calls has them added here; those of other threads run at once. All but `run_all`, which one
// thread at a time is in, needs the GIL.
class Calls {
  public:
    using Times = std::vector<std::pair<double, double>>;

    void defer(bool wanted) {
        deferring_ = wanted;
        thread_ = std::this_thread::get_id();
    }
    bool are_deferred() const { return deferring_ && are_of_this_thread(); }
    bool are_of_this_thread() const { return thread_ == std::this_thread::get_id(); }

    // Returns whether someone must be found who runs them, for nobody does.
    template <class Run>
    bool add(const Arguments& arguments, const Run& run) {
        bytes_ += arguments.activation_bytes();
        ++count_;
        std::lock_guard<std::mutex> guard(mutex_);
        calls_.push_back({run, arguments.tensors()});
        return !std::exchange(are_run_, true);
    }
    // Bytes of activations that those use that were added since `clear`, counted by each.
    int64_t bytes() const { return bytes_; }

    // Runs those that were added, and notes when, until there are no more; unless after `close`, it waits for some a
    // little. After one that throws the others are dropped, until `clear`.
    void run_all(const Context& context) {
        while (const Call* call = next()) {
            try {
                const double start = seconds();
                call->run(context);
                times_.emplace_back(start, seconds());
            } catch (...) {
                error_ = std::current_exception();
            }
        }
    }
    // No more will be added until `clear`.
    void close() { is_closed_.store(true); }
    // Lets go of all of them, which have run, and throws what one of them has thrown.
    void clear() {
        calls_.clear();
        begun_ = 0;
        bytes_ = 0;
        is_closed_.store(false);
        if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    }

    bool is_empty() const { return calls_.empty(); }
    // Calls that were added, and the times of those that ran, since the times were taken last.
    int64_t count() const { return count_; }
    Times take_times() {
        count_ = 0;
        return std::exchange(times_, {});
    }

  private:
    static constexpr double kPatience = 100e-6;  // seconds; Python takes 10 to 50 µs for one

    // Of the clock that Python's time.perf_counter reads.
    static double seconds() {
        return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    }

    // Null when nobody runs them any more.
    const Call* next() {
        for (const double deadline = seconds() + kPatience;; pause_briefly()) {
            std::lock_guard<std::mutex> guard(mutex_);
            if (error_) begun_ = calls_.size();
            if (begun_ < calls_.size()) return &calls_[begun_++];
            if (!is_closed_.load() && seconds() < deadline) continue;
            are_run_ = false;
            return nullptr;
        }
    }

    bool deferring_ = false;
    std::thread::id thread_;
    int64_t bytes_ = 0;
    int64_t count_ = 0;
    std::atomic<bool> is_closed_{false};

    std::mutex mutex_;
    std::deque<Call> calls_;  // since `clear`
    size_t begun_ = 0;
    bool are_run_ = false;
    std::exception_ptr error_;
    Times times_;
};

}  // namespace moelens
