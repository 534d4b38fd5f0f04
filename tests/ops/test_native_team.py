"""The worker team, by a program in C++ that is compiled here, once plainly and once for ThreadSanitizer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("g++")

PROGRAM = r"""
#include <unistd.h>
#include <sys/wait.h>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include "team.h"

using moelens::Team;

#define CHECK(condition) \
    if (!(condition)) { std::fprintf(stderr, "line %d: %s\n", __LINE__, #condition); std::exit(1); }

struct Job {
    std::vector<int> runs;        // of each task, written by whoever runs it
    std::vector<int64_t> sums;    // of each thread
    int64_t fails = -1;
};

void work(void* context, int64_t task, int thread) {
    Job& job = *static_cast<Job*>(context);
    if (task == job.fails) throw std::runtime_error("task " + std::to_string(task));
    ++job.runs[task];
    job.sums[thread] += task;
}

void check_all_run_once(Team& team, int64_t count) {
    Job job{std::vector<int>(count), std::vector<int64_t>(team.threads())};
    const auto lock = team.lock();
    team.run(count, work, &job);
    int64_t sum = 0;
    for (int64_t part : job.sums) sum += part;
    for (int runs : job.runs) CHECK(runs == 1);
    CHECK(sum == count * (count - 1) / 2);
}

void check_error(Team& team, int64_t count, int64_t fails) {
    Job job{std::vector<int>(count), std::vector<int64_t>(team.threads()), fails};
    std::string caught;
    {
        const auto lock = team.lock();
        try {
            team.run(count, work, &job);
        } catch (const std::runtime_error& error) {
            caught = error.what();
        }
    }
    CHECK(caught == "task " + std::to_string(fails));
    for (int runs : job.runs) CHECK(runs <= 1);
    CHECK(job.runs[fails] == 0);
    check_all_run_once(team, count);  // the team is as good as before
}

struct Led {
    Team& team;
    int64_t count;
    std::atomic<bool> is_done{false};
    int times = 0;
};

void lead(void* context) {
    Led& led = *static_cast<Led*>(context);
    Job job{std::vector<int>(led.count), std::vector<int64_t>(led.team.threads())};
    led.team.run(led.count, work, &job);
    for (int runs : job.runs) CHECK(runs == 1);
    ++led.times;
    led.is_done = true;
}

void check_led(Team& team, int64_t count) {
    Led led{team, count};
    team.start(lead, &led);
    if (count % 2 && team.threads() > 1) {
        while (!led.is_done.load()) usleep(10);  // a worker comes, though nobody waits for it
    }
    team.join();
    {
        const auto lock = team.lock();
        if (!led.is_done.load()) lead(&led);  // none came, so none will
    }
    check_all_run_once(team, count);  // the caller is number 0 again
    CHECK(led.times == 1);
}

int main(int argc, char**) {
    for (int threads : {1, 2, 5}) {
        Team team(threads);
        for (int round = 0; round < 300; ++round) {
            check_all_run_once(team, round % 7 == 0 ? 1000 : round % 40);
            if (round % 50 == 0) usleep(3000);  // the workers fall asleep
        }
        for (int round = 0; round < 50; ++round) check_error(team, 64, round);
        for (int round = 0; round < 200; ++round) {
            check_led(team, round % 40);
            if (round % 50 == 0) usleep(3000);
        }
    }
    Team shared(3);
    std::vector<std::thread> callers;
    for (int i = 0; i < 4; ++i) {
        callers.emplace_back([&] { for (int round = 0; round < 100; ++round) check_all_run_once(shared, 50); });
    }
    for (std::thread& caller : callers) caller.join();
    if (argc > 1) return 0;  // ThreadSanitizer doesn't follow a fork
    const pid_t child = fork();
    if (child == 0) {
        for (int round = 0; round < 20; ++round) check_all_run_once(shared, 100);
        shared.start(lead, nullptr);  // nobody is there who would
        shared.join();
        shared.~Team();
        _exit(7);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7);
    check_all_run_once(shared, 100);
    return 0;
}
"""


def compile_and_run(folder: Path, flags: list[str], arguments: list[str]) -> None:
    assert COMPILER
    source, program = folder / "team_check.cpp", folder / "team_check"
    source.write_text(PROGRAM)
    command = [COMPILER, "-std=c++17", "-Wall", *flags, f"-I{ROOT / 'csrc' / 'cpu'}", str(source)]
    subprocess.run([*command, str(ROOT / "csrc" / "cpu" / "team.cpp"), "-pthread", "-o", str(program)], check=True)
    result = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(COMPILER is None, reason="needs g++")
def test_every_task_runs_once_and_errors_reach_the_caller(tmp_path: Path) -> None:
    compile_and_run(tmp_path, ["-O1"], [])


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="needs g++")
def test_the_team_has_no_data_race(tmp_path: Path) -> None:
    compile_and_run(tmp_path, ["-O1", "-g", "-fsanitize=thread"], ["without-fork"])
