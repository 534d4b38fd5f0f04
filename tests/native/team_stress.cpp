// Stresses the worker team, built with ThreadSanitizer by `make sanitize-threads`: every task once, in ascending order
// of starting, through calls from several threads and by workers that lead, exceptions, sleeping workers and teams that
// come and go.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "team.h"

namespace {

// What the tasks of one call write; `sums` is plain memory, so a task that another's call can see is a race.
struct Call {
    std::vector<int64_t> results;
    std::vector<int64_t> sums;  // by thread
    std::atomic<int64_t> started{0};
    int64_t thrown_at = -1;
};

void fail(const std::string& message) {
    std::fprintf(stderr, "team_stress: %s\n", message.c_str());
    std::exit(1);
}

void task(void* context, int64_t index, int thread) {
    Call& call = *static_cast<Call*>(context);
    call.started.fetch_add(1);
    if (index == call.thrown_at) throw std::runtime_error("on purpose");
    if (call.results[index] != -1) fail("a task ran twice");
    call.results[index] = index * index;
    call.sums[thread] += index;
}

void run_once(moelens::Team& team, std::mt19937& random) {  // under the team's lock
    Call call;
    const int64_t count = std::uniform_int_distribution<int64_t>(0, 200)(random);
    call.results.assign(count, -1);
    call.sums.assign(team.threads(), 0);
    const bool throws = count > 0 && random() % 4 == 0;
    if (throws) call.thrown_at = static_cast<int64_t>(random() % count);
    bool caught = false;
    try {
        team.run(count, task, &call);
    } catch (const std::runtime_error&) {
        caught = true;
    }
    if (caught != throws) fail("an exception was lost or made up");
    if (throws) return;
    int64_t sum = 0;
    for (const int64_t part : call.sums) sum += part;
    if (sum != count * (count - 1) / 2) fail("the threads' sums do not add up");
    for (int64_t i = 0; i < count; ++i) {
        if (call.results[i] != i * i) fail("a task was left out");
    }
}

// What a worker leads while the first caller does something else.
struct Led {
    moelens::Team& team;
    std::mt19937 random;
    int calls;
};

void lead(void* context) {
    Led& led = *static_cast<Led*>(context);
    for (; led.calls > 0; --led.calls) run_once(led.team, led.random);
}

void run_led(moelens::Team& team, std::mt19937& random) {
    Led led{team, std::mt19937(random()), 10};
    team.start(lead, &led);
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 400));
    team.join();
    const auto lock = team.lock();
    if (led.calls != 10 && led.calls != 0) fail("what a worker leads was not waited for");
    if (led.calls > 0) lead(&led);
}

void stress(int threads, int callers, int calls, unsigned seed) {
    moelens::Team team(threads);
    std::vector<std::thread> running;
    for (int caller = 0; caller < callers; ++caller) {
        running.emplace_back([&team, calls, caller, seed = seed + static_cast<unsigned>(caller)] {
            std::mt19937 random(seed);
            for (int call = 0; call < calls; ++call) {
                if (caller == 0 && call % 10 == 0) run_led(team, random);
                {
                    const auto lock = team.lock();
                    run_once(team, random);
                }
                if (random() % 16 == 0) {  // longer than workers spin
                    std::this_thread::sleep_for(std::chrono::microseconds(random() % 400));
                }
            }
        });
    }
    for (std::thread& thread : running) thread.join();
}

}  // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 20;
    int64_t calls = 0;
    for (int round = 0; round < rounds; ++round) {
        for (const int threads : {1, 2, 4, 9}) {
            const int callers = 1 + round % 4;
            stress(threads, callers, 200, static_cast<unsigned>(1000 * round + threads));
            calls += callers * 200;
        }
    }
    std::printf("team_stress: %lld calls of teams of 1 to 9 threads, no fault\n", static_cast<long long>(calls));
    return 0;
}
