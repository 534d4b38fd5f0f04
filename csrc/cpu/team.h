// The worker threads that share the tasks of one kernel call.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace moelens {

// A team of `threads` threads, of which the caller of run() is number 0.
//
// Idle workers spin briefly and then sleep. A process that was forked has no workers; run() then does all by itself.
class Team {
  public:
    using Task = void (*)(void* context, int64_t task, int thread);

    explicit Team(int threads);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int threads() const { return threads_; }

    // Whoever holds this may call run(); it waits for the call that is running.
    std::unique_lock<std::mutex> lock();

    // Runs task(context, i, thread) for i in [0, count), each once, started in ascending order; returns when all are
    // done. The first exception of a task is thrown here, and tasks that had not started are then dropped.
    void run(int64_t count, Task task, void* context);

    // Has a worker, if there is one, take the lock and call lead(context), which may call run(), while the caller does
    // something else. The `lead` before has returned.
    using Lead = void (*)(void* context);
    void start(Lead lead, void* context);
    // Takes part, as number 0, in what is led until `lead` has returned. If no worker has come to it, none will.
    void join();

  private:
    enum class Leading { kNone, kWanted, kBegun, kOver };

    void lead();
    void work(int thread);
    bool participate(int thread);
    void wake_workers();
    bool await_tasks(int thread);
    void drop_workers_of_parent();

    const int threads_;
    int forks_;  // how often this process's ancestors had forked when the workers were started
    std::vector<std::thread> workers_;
    std::mutex calls_;

    // The job. A worker reads the fields after claiming a task, and while a claimed task runs they don't change.
    Task task_ = nullptr;
    void* context_ = nullptr;
    int64_t count_ = 0;
    std::exception_ptr error_;
    int leader_ = 0;  // the thread that calls run()

    // What a worker leads. It keeps the lock until whoever joined has left: the next caller of run() is number 0, too.
    static constexpr int kLeader = 1;
    Lead lead_ = nullptr;
    void* lead_context_ = nullptr;
    std::atomic<Leading> leading_{Leading::kNone};
    std::atomic<bool> is_joined_{false};

    alignas(64) std::atomic<uint64_t> cursor_{0};  // job number << 32 | tasks not yet claimed
    alignas(64) std::atomic<int64_t> done_{0};
    alignas(64) std::atomic<int> sleepers_{0};
    std::atomic<bool> stop_{false};
    std::mutex sleep_;
    std::condition_variable wake_;
};

}  // namespace moelens
