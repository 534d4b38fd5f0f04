// The emulation's scheduler: runs a launch block by block, and a block's threads from meeting to meeting.
//
// For a race check this file is compiled with MOELENS_RACE_CHECK but without -fsanitize=thread, and the kernels with
// it: every CUDA thread is then a fiber of ThreadSanitizer, ordered by nothing but the meetings.
#include "emulation.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>

#include "fiber.h"

#if defined(MOELENS_RACE_CHECK)
#include <sanitizer/tsan_interface.h>
#define WATCH(...) __VA_ARGS__
// What a collective does for its lanes is no access of one of them.
extern "C" void AnnotateIgnoreReadsBegin(const char*, int);
extern "C" void AnnotateIgnoreReadsEnd(const char*, int);
extern "C" void AnnotateIgnoreWritesBegin(const char*, int);
extern "C" void AnnotateIgnoreWritesEnd(const char*, int);
#else
#define WATCH(...)
#endif

namespace moelens::emulation {

thread_local Place place;
thread_local Thread* current = nullptr;

namespace {

uint64_t seed = 0;
constexpr size_t kStaticSharedBytes = 48 * 1024, kFenceBytes = 64;
constexpr unsigned char kPoison = 0xff;  // NaN as bfloat16 and float32, -1 as an integer
constexpr unsigned char kFence = 0xa5;

uint64_t next_random(uint64_t& state) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

template <class T>
void shuffle(std::vector<T>& items, uint64_t& state) {
    if (seed == 0) return;
    for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[next_random(state) % i]);
}

// Shared memory: a piece of heap, poisoned. Without AddressSanitizer a fence behind it shows what is written there.
class Shared {
  public:
    explicit Shared(size_t bytes) : bytes_(bytes) {
#if defined(__SANITIZE_ADDRESS__)
        const size_t fence = 0;
#else
        const size_t fence = kFenceBytes;
#endif
        void* memory = nullptr;
        if (posix_memalign(&memory, 128, bytes + fence) != 0) throw std::bad_alloc();
        data_.reset(static_cast<unsigned char*>(memory));
        std::memset(memory, kPoison, bytes);
        std::memset(data_.get() + bytes, kFence, fence);
        fence_ = fence;
    }

    unsigned char* data() const { return data_.get(); }
    bool is_overrun() const {
        const unsigned char* end = data_.get() + bytes_;
        return std::any_of(end, end + fence_, [](unsigned char byte) { return byte != kFence; });
    }

  private:
    struct Free {
        void operator()(unsigned char* memory) const { std::free(memory); }
    };
    size_t bytes_, fence_ = 0;
    std::unique_ptr<unsigned char, Free> data_;
};

// One launch; its blocks run one after another.
struct Launch {
    explicit Launch(const std::function<void()>& body) : body(body) {}

    const std::function<void()>& body;
    std::vector<Thread> threads;
    std::vector<unsigned> ready;
    std::map<const void*, Shared> shared;
    size_t static_bytes = 0;
    unsigned running = 0, at_barrier = 0, barriers = 0;
    std::string error;
    uint64_t random = 1;
    void* race_caller = nullptr;
    char race_block[2] = {}, race_launch = 0;
    // ThreadSanitizer remembers addresses, so nothing is used twice while it watches.
    std::vector<std::vector<Thread>> past_threads;
    std::vector<std::map<const void*, Shared>> past_shared;
    std::vector<Shared> past_dynamic;
};

thread_local Launch* running_launch = nullptr;
thread_local Fibers fibers;

void leave(bool for_good) {
    WATCH(__tsan_switch_to_fiber(running_launch->race_caller, 1);)
    fibers.leave(current->stack_pointer, for_good);
}

void wait(State state) {
    current->state = state;
    leave(false);
}

void make_ready(Launch& run, Thread& thread) {
    thread.state = State::kReady;
    run.ready.push_back(thread.number);
}

std::string describe(const Thread& thread) {
    const std::string what = thread.state == State::kAtBarrier ? "__syncthreads" : thread.collective;
    return "thread " + std::to_string(thread.number) + " waits at " + what + " (line " + std::to_string(thread.line) +
           ")";
}

std::string describe_deadlock(const Launch& run) {
    std::string text = "threads wait for each other: ";
    for (const Thread& thread : run.threads) {
        if (thread.state != State::kExited && text.size() < 300) text += describe(thread) + "; ";
    }
    return text;
}

void thread_main() {
    begin_fiber();
    running_launch->body();
    if (running_launch->at_barrier > 0) fail("a thread ends while others wait at a barrier");
    current->state = State::kExited;
    WATCH(__tsan_release(&running_launch->race_launch);)
    --running_launch->running;
    leave(true);
    std::abort();
}

void start_threads(Launch& run) {
    const dim3 size = place.block_size;
    const unsigned count = size.x * size.y * size.z;
    WATCH(run.past_threads.push_back(std::move(run.threads));)
    run.threads.assign(count, Thread());
    run.ready.clear();
    run.ready.reserve(count);  // so that no thread of the kernel moves what others wrote
    run.running = count;
    run.at_barrier = 0;
    for (unsigned i = 0; i < count; ++i) {
        Thread& thread = run.threads[i];
        thread.number = i;
        thread.lane = i % 32;
        thread.warp = i / 32;
        thread.index = dim3(i % size.x, i / size.x % size.y, i / (size.x * size.y));
        thread.stack_pointer = fibers.prepare(i, thread_main);
        WATCH(thread.race_fiber = __tsan_create_fiber(0);)
        run.ready.push_back(i);
    }
}

void run_block(Launch& run) {
    start_threads(run);
    WATCH(run.race_caller = __tsan_get_current_fiber();)
    std::vector<unsigned> now;
    now.reserve(run.threads.size());
    while (run.running > 0 && run.error.empty()) {
        now.swap(run.ready);
        run.ready.clear();
        if (now.empty()) run.error = describe_deadlock(run);
        shuffle(now, run.random);
        for (size_t i = 0; i < now.size() && run.error.empty(); ++i) {
            current = &run.threads[now[i]];
            WATCH(__tsan_switch_to_fiber(current->race_fiber, 1);)
            fibers.enter(now[i], current->stack_pointer);
        }
    }
    WATCH(for (Thread& thread : run.threads) __tsan_destroy_fiber(thread.race_fiber);)
    current = nullptr;
    for (const auto& [site, memory] : run.shared) {
        if (memory.is_overrun() && run.error.empty()) run.error = "shared memory is written past its end";
    }
    WATCH(run.past_shared.push_back(std::move(run.shared));)
    run.shared.clear();
    run.static_bytes = 0;
}

std::map<const void*, int>& dynamic_limits() {
    static std::map<const void*, int> limits;
    return limits;
}

void check_launch(const void* kernel, const char* name, dim3 grid, dim3 block, size_t shared_bytes) {
    const auto refuse = [&](const char* why) { throw Error(std::string(name) + ": invalid launch: " + why); };
    if (!grid.x || !grid.y || !grid.z || !block.x || !block.y || !block.z) refuse("an empty grid or block");
    if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) refuse("the grid is too large");
    if (static_cast<uint64_t>(block.x) * block.y * block.z > 1024 || block.z > 64) refuse("the block is too large");
    const auto raised = dynamic_limits().find(kernel);
    const size_t limit = raised == dynamic_limits().end() ? kStaticSharedBytes : static_cast<size_t>(raised->second);
    if (shared_bytes > limit) refuse("more dynamic shared memory than is allowed");
}

void run_all_blocks(Launch& run, dim3 grid, size_t shared_bytes) {
    std::vector<uint64_t> order(static_cast<uint64_t>(grid.x) * grid.y * grid.z);
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    uint64_t random = seed * 0x9E3779B97F4A7C15ull + 1;
    shuffle(order, random);
    for (uint64_t i : order) {
        place.block = dim3(static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                           static_cast<unsigned>(i / (static_cast<uint64_t>(grid.x) * grid.y)));
        run.random = random + 2 * i + 1;
        Shared dynamic(shared_bytes);
        place.dynamic_shared = dynamic.data();
        run_block(run);
        if (dynamic.is_overrun() && run.error.empty()) run.error = "shared memory is written past its end";
        WATCH(run.past_dynamic.push_back(std::move(dynamic));)
        if (!run.error.empty()) return;
    }
}

}  // namespace

void set_seed(uint64_t value) {
    seed = value;
}

void fail(const std::string& what) {
    if (running_launch == nullptr || current == nullptr) throw Error(what);
    running_launch->error = what + ", thread " + std::to_string(current->number);
    for (;;) leave(false);  // the launch ends on the caller's stack
}

void meet_at_barrier(int line) {
    Launch& run = *running_launch;
    current->line = line;
    if (run.running < run.threads.size())
        fail("a barrier that ended threads don't reach (line " + std::to_string(line) + ")");
    // Two marks in turn: a thread that is at the next barrier already must not be ordered before one that leaves this
    // one.
    WATCH(char* mark = &run.race_block[run.barriers & 1]; __tsan_release(mark);)
    if (++run.at_barrier < run.threads.size()) {
        wait(State::kAtBarrier);
    } else {
        run.at_barrier = 0;
        ++run.barriers;
        for (Thread& thread : run.threads) {
            if (thread.line != line)
                fail("threads meet at different barriers: " + describe(thread) + ", line " + std::to_string(line));
            if (&thread != current) make_ready(run, thread);
        }
    }
    WATCH(__tsan_acquire(mark);)
}

void meet_in_warp(const char* name, unsigned mask, void* arguments, int line, void (*compute)(void**),
                  bool orders_memory) {
    Launch& run = *running_launch;
    Thread& mine = *current;
    const auto what = [&] { return std::string(name) + " (line " + std::to_string(line) + ")"; };
    if (!(mask >> mine.lane & 1)) fail(what() + ": the mask lacks the lane that calls");
    WATCH(if (orders_memory) __tsan_release(&mine.collective_in);)
    mine.collective = name;
    mine.mask = mask;
    mine.arguments = arguments;
    mine.line = line;
    Thread* lanes[32];
    int count = 0;
    void* all[32] = {};
    bool complete = true;
    for (unsigned lane = 0; lane < 32; ++lane) {
        if (!(mask >> lane & 1)) continue;
        const unsigned number = mine.warp * 32 + lane;
        if (number >= run.threads.size()) fail(what() + ": the mask names a lane past the block's end");
        Thread& other = run.threads[number];
        if (other.state == State::kExited) fail(what() + ": the mask names a lane that has ended");
        if (&other != &mine && other.state != State::kAtCollective) {
            complete = false;
            continue;
        }
        if (other.mask != mask || other.line != line || std::strcmp(other.collective, name) != 0) {
            fail("lanes of a warp meet at different collectives: " + what() + ", and " + describe(other));
        }
        all[lane] = arguments == nullptr ? nullptr : other.arguments;
        lanes[count++] = &other;
    }
    if (!complete) {
        wait(State::kAtCollective);
    } else {
        WATCH(for (int i = 0; i < count && orders_memory; ++i) __tsan_acquire(&lanes[i]->collective_in);
              AnnotateIgnoreReadsBegin(__FILE__, __LINE__); AnnotateIgnoreWritesBegin(__FILE__, __LINE__);)
        compute(all);
        WATCH(AnnotateIgnoreWritesEnd(__FILE__, __LINE__); AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
              for (int i = 0; i < count && orders_memory; ++i) __tsan_release(&lanes[i]->collective_out);)
        for (int i = 0; i < count; ++i) {
            if (lanes[i] != &mine) make_ready(run, *lanes[i]);
        }
    }
    WATCH(if (orders_memory) __tsan_acquire(&mine.collective_out);)
    static_cast<void>(orders_memory);
}

void* shared_memory(const void* site, size_t bytes) {
    Launch& run = *running_launch;
    auto found = run.shared.find(site);
    if (found == run.shared.end()) {
        run.static_bytes += bytes;
        if (run.static_bytes > kStaticSharedBytes) fail("more than 48 KiB of static shared memory");
        found = run.shared.emplace(site, Shared(bytes)).first;
        WATCH(__tsan_release(found->second.data());)
    }
    WATCH(__tsan_acquire(found->second.data());)
    return found->second.data();
}

void launch(const void* kernel, const char* name, dim3 grid, dim3 block, size_t shared_bytes,
            const std::function<void()>& body) {
    check_launch(kernel, name, grid, block, shared_bytes);
    Launch run(body);
    running_launch = &run;
    place.block_size = block;
    place.grid_size = grid;
    run_all_blocks(run, grid, shared_bytes);
    running_launch = nullptr;
    WATCH(__tsan_acquire(&run.race_launch);)
    if (!run.error.empty()) {
        throw Error(std::string(name) + ", block (" + std::to_string(place.block.x) + ", " +
                    std::to_string(place.block.y) + ", " + std::to_string(place.block.z) + "): " + run.error);
    }
}

void allow_dynamic_shared(const void* kernel, int bytes) {
    dynamic_limits()[kernel] = bytes;
}

}  // namespace moelens::emulation
