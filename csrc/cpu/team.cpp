// The worker team: tasks are claimed by a compare-and-swap on one word; nobody waits for a worker that claimed none.
#include "team.h"

#include <pthread.h>

#include <chrono>
#include <new>
#include <utility>

#include "pause.h"

namespace moelens {

namespace {

constexpr std::chrono::microseconds kSpin{
    100};  // an op of Python's takes 10 to 50 µs, so workers stay awake in a layer
constexpr int kPausesPerLook = 32;
constexpr int64_t kLooksBeforeYield = 10000;

std::atomic<int> forks{0};

void count_fork() {
    forks.fetch_add(1, std::memory_order_relaxed);
}

int forks_so_far() {
    static const int registered = pthread_atfork(nullptr, nullptr, count_fork);
    (void)registered;
    return forks.load(std::memory_order_relaxed);
}

uint32_t unclaimed(uint64_t cursor) {
    return static_cast<uint32_t>(cursor);
}

}  // namespace

Team::Team(int threads) : threads_(threads), forks_(forks_so_far()) {
    for (int thread = 1; thread < threads; ++thread) workers_.emplace_back(&Team::work, this, thread);
}

Team::~Team() {
    if (forks_ != forks_so_far()) {
        drop_workers_of_parent();
        return;
    }
    {
        std::lock_guard<std::mutex> guard(sleep_);
        stop_.store(true);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

std::unique_lock<std::mutex> Team::lock() {
    if (forks_ != forks_so_far()) drop_workers_of_parent();
    return std::unique_lock<std::mutex>(calls_);
}

// After a fork the workers don't exist. A mutex may have been copied while a thread held it, and a condition variable
// with threads that wait on it, for which its destructor would wait: all begin anew.
void Team::drop_workers_of_parent() {
    for (std::thread& worker : workers_) worker.detach();
    workers_.clear();
    new (&calls_) std::mutex;
    new (&sleep_) std::mutex;
    new (&wake_) std::condition_variable;
    sleepers_.store(0);
    error_ = nullptr;
    leader_ = 0;
    leading_.store(Leading::kNone);
    is_joined_.store(false);
    forks_ = forks_so_far();
}

void Team::run(int64_t count, Task task, void* context) {
    if (count <= 1 || workers_.empty()) {
        for (int64_t i = 0; i < count; ++i) task(context, i, leader_);
        return;
    }
    task_ = task;
    context_ = context;
    count_ = count;
    done_.store(0, std::memory_order_relaxed);
    const uint64_t job = (cursor_.load(std::memory_order_relaxed) >> 32) + 1;
    cursor_.store(job << 32 | static_cast<uint64_t>(count));
    wake_workers();
    participate(leader_);
    for (int64_t looks = 0; done_.load(std::memory_order_acquire) != count; ++looks) {
        pause_briefly();
        if (looks > kLooksBeforeYield) std::this_thread::yield();  // a worker has lost its processor to someone else
    }
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void Team::wake_workers() {
    if (sleepers_.load() == 0) return;
    std::lock_guard<std::mutex> guard(sleep_);  // a worker that is about to sleep looks for work under this lock
    wake_.notify_all();
}

void Team::start(Lead lead, void* context) {
    if (forks_ != forks_so_far()) drop_workers_of_parent();
    if (workers_.empty()) return;
    while (leading_.load() != Leading::kNone) pause_briefly();  // the worker is about to be done with the one before
    lead_ = lead;
    lead_context_ = context;
    leading_.store(Leading::kWanted);
    wake_workers();
}

void Team::join() {
    if (forks_ != forks_so_far()) drop_workers_of_parent();
    Leading wanted = Leading::kWanted;
    if (leading_.compare_exchange_strong(wanted, Leading::kNone)) return;
    is_joined_.store(true);
    for (int64_t looks = 0; leading_.load() == Leading::kBegun; ++looks) {
        if (participate(0)) looks = 0;
        pause_briefly();
        if (looks > kLooksBeforeYield) std::this_thread::yield();
    }
    is_joined_.store(false);
}

// By a worker.
void Team::lead() {
    std::lock_guard<std::mutex> guard(calls_);
    Leading wanted = Leading::kWanted;
    if (!leading_.compare_exchange_strong(wanted, Leading::kBegun)) return;
    leader_ = kLeader;
    lead_(lead_context_);
    leading_.store(Leading::kOver);
    while (is_joined_.load()) pause_briefly();
    leader_ = 0;
    leading_.store(Leading::kNone);
}

// Returns whether there was something to do.
bool Team::participate(int thread) {
    int64_t finished = 0;
    uint64_t cursor = cursor_.load(std::memory_order_acquire);
    while (unclaimed(cursor) > 0) {
        if (!cursor_.compare_exchange_weak(cursor, cursor - 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
            continue;
        }
        try {
            task_(context_, count_ - unclaimed(cursor), thread);
        } catch (...) {
            std::lock_guard<std::mutex> guard(sleep_);
            if (!error_) error_ = std::current_exception();
            cursor = cursor_.load();
            while (!cursor_.compare_exchange_weak(cursor, cursor >> 32 << 32)) continue;
            finished += unclaimed(cursor);
        }
        ++finished;
        cursor = cursor_.load(std::memory_order_acquire);
    }
    if (finished > 0) done_.fetch_add(finished, std::memory_order_acq_rel);
    return finished > 0;
}

void Team::work(int thread) {
    while (await_tasks(thread)) {
        if (thread == kLeader && leading_.load() == Leading::kWanted) {
            lead();
        } else {
            participate(thread);
        }
    }
}

// Returns false when the team is being destroyed.
bool Team::await_tasks(int thread) {
    const auto ready = [this, thread] {
        return unclaimed(cursor_.load()) > 0 || (thread == kLeader && leading_.load() == Leading::kWanted) ||
               stop_.load(std::memory_order_relaxed);
    };
    const auto deadline = std::chrono::steady_clock::now() + kSpin;
    while (!ready()) {
        for (int i = 0; i < kPausesPerLook && !ready(); ++i) pause_briefly();
        if (std::chrono::steady_clock::now() < deadline) continue;
        std::unique_lock<std::mutex> guard(sleep_);
        sleepers_.fetch_add(1);
        wake_.wait(guard, ready);
        sleepers_.fetch_sub(1);
    }
    return !stop_.load(std::memory_order_relaxed);
}

}  // namespace moelens
