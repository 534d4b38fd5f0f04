"""A job that is killed at any moment, also inside a write, comes to the same results as one that is left alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny_config
from commands import Commands

from moelens.jobs.journal import Journal

CONFIG = {**tiny_config.CONFIG, "vocab_size": 268}
FORM = {"type": "object", "properties": {"kind": {"enum": ["a", "bb"]}, "size": {"type": "integer"}}}
SIZES = ["--load-format", "dummy", "--num-threads", "1", "--max-num-seqs", "4"]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    made = Commands(tmp_path_factory.mktemp("commands") / "errors.txt")
    yield made
    made.close()


@pytest.fixture
def model(byte_tokenizer_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(byte_tokenizer_folder, folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def write_requests(path: Path, count: int, most_tokens: int) -> None:
    with path.open("w") as file:
        for i in range(count):
            body: dict[str, Any] = {"max_tokens": 1 + i * 7 % most_tokens, "temperature": 0.7 * (i % 3)}
            if i % 5 == 0:
                body["response_format"] = {"type": "json_schema", "json_schema": {"name": "form", "schema": FORM}}
            if i % 2:
                body["prompt"] = f"The number {i} is"
                line = {"custom_id": f"id-{i}", "method": "POST", "url": "/v1/completions", "body": body}
            else:
                body["messages"] = [{"role": "user", "content": f"Tell me about {i}."}]
                line = {"custom_id": f"id-{i}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line if i % 7 else {"prompt": f"{i}", "temperature": -1}) + "\n")


def argv(folder: Path, output: str, model: Path, *more: str) -> list[str]:
    return ["run-batch", "-i", str(folder / "in.jsonl"), "-o", str(folder / output), "--model", str(model), *more]


def by_id(path: Path) -> dict[str, bytes]:
    lines = path.read_bytes().splitlines(keepends=True)
    found = {json.loads(line)["id"]: line for line in lines}
    assert len(found) == len(lines), "a line has two results"
    return found


@dataclass(frozen=True)
class Kill:
    """How a run ended: `seconds` after its start, inside a write or at any instant, and what the output held then."""

    seconds: float
    in_write: bool
    lines: int
    torn_bytes: int


def kill_once(
    commands: Commands, command: list[str], output: Path, in_write: int | None, wait_seconds: float, most_lines: int
) -> Kill:
    """Start a job and kill it: in the middle of a write, or after some seconds, or when it has so many lines."""
    begin = time.monotonic()
    if in_write is not None:
        status = commands.run(command, die_in_write=in_write)
    else:
        process = commands.start(command)
        while time.monotonic() < begin + wait_seconds and count_lines(output) < most_lines:
            time.sleep(0.001)
        os.kill(process, signal.SIGKILL)
        status = commands.wait()
    assert status == -signal.SIGKILL, f"the job was not killed, but ended with {status}: {commands.said()}"
    content = output.read_bytes() if output.exists() else b""
    torn = len(content) - content.rfind(b"\n") - 1
    return Kill(time.monotonic() - begin, in_write is not None, content.count(b"\n"), torn)


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_often(
    commands: Commands, command: list[str], output: Path, kills: int, run_seconds: float, lines: int, seed: int
) -> list[Kill]:
    """Start and kill a job of `lines` lines `kills` times, every other time inside a write, so that it isn't over."""
    random_ = random.Random(seed)
    found: list[Kill] = []
    for number in range(kills):
        most_lines = lines * (number + 1) // (kills + 1)  # which leaves some for every kill
        in_write = random_.randint(1, 3) if number % 2 else None
        found.append(
            kill_once(commands, command, output, in_write, random_.uniform(0.0, 4 * run_seconds / kills), most_lines)
        )
    return found


def test_a_job_killed_eight_times_loses_nothing(commands: Commands, model: Path, tmp_path: Path) -> None:
    write_requests(tmp_path / "in.jsonl", 150, 40)
    begin = time.monotonic()
    assert commands.run(argv(tmp_path, "whole.jsonl", model, *SIZES)) == 0, commands.said()
    seconds = time.monotonic() - begin
    command = argv(tmp_path, "killed.jsonl", model, *SIZES)
    output = tmp_path / "killed.jsonl"
    kills = kill_often(commands, command, output, 8, seconds, 150, seed=11)
    assert sum(kill.torn_bytes > 0 for kill in kills) >= 4, "a kill inside a write leaves a torn line"
    assert kills[-1].lines < 150, "the job was over before it was killed"
    assert commands.run(command) == 0, commands.said()
    assert by_id(output) == by_id(tmp_path / "whole.jsonl")
    assert commands.run([*command, "--ordered"]) == 0, commands.said()
    assert list(by_id(output)) == [f"moelens-{i}" for i in range(1, 151)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_and_says_how_to_go_on(
    commands: Commands, model: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    write_requests(tmp_path / "in.jsonl", 400, 60)
    command = argv(tmp_path, "out.jsonl", model, *SIZES)
    output = tmp_path / "out.jsonl"
    process = commands.start(command)
    while not output.exists() or output.read_bytes().count(b"\n") < 70:
        time.sleep(0.005)
    os.kill(process, number)
    assert commands.wait() == code
    done = output.read_bytes().count(b"\n")
    assert f"stopped by {number.name}. {done} of 400 lines are done and kept in {output}" in commands.said()
    assert "Repeat the command to go on" in commands.said()
    assert output.read_bytes().endswith(b"\n") and len(by_id(output)) == done < 400


def test_two_processes_do_not_write_one_output(commands: Commands, model: Path, tmp_path: Path) -> None:
    write_requests(tmp_path / "in.jsonl", 8, 4)
    command = argv(tmp_path, "out.jsonl", model, *SIZES)
    with Journal(tmp_path / "out.jsonl"):
        assert commands.run(command) == 1
        assert "Another process writes" in commands.said()
        assert commands.run([*command, "--check"]) == 1, "which writes nothing, and finds the faulty lines"
        assert "8 lines, 2 of which can't be run" in commands.said()
    assert commands.run(command) == 0


def test_a_model_whose_files_are_gone_is_said(commands: Commands, model: Path, tmp_path: Path) -> None:
    write_requests(tmp_path / "in.jsonl", 20, 10)
    command = argv(tmp_path, "out.jsonl", model, *SIZES)
    assert commands.run(command, die_in_write=2) == -signal.SIGKILL
    (model / "config.json").unlink()
    assert commands.run(command) == 1
    assert "run-batch: " in commands.said() and "config.json" in commands.said()
    assert "Traceback" not in commands.said()
    (model / "config.json").write_text(json.dumps(CONFIG))
    assert commands.run(command) == 0, commands.said()
    assert len(by_id(tmp_path / "out.jsonl")) == 20


@pytest.mark.slow
def test_a_real_job_killed_forty_times_loses_nothing(commands: Commands, tmp_path: Path) -> None:
    """400 requests to a model that writes English."""
    from real_moe import default_cache, default_recipe, ensure_checkpoint

    model = ensure_checkpoint(default_recipe("olmoe"), default_cache())
    write_requests(tmp_path / "in.jsonl", 400, 48)
    begin = time.monotonic()
    sizes = ("--max-num-seqs", "16", "--num-threads", "1")
    assert commands.run(argv(tmp_path, "whole.jsonl", model, *sizes)) == 0, commands.said()
    seconds = time.monotonic() - begin
    command = argv(tmp_path, "killed.jsonl", model, *sizes)
    output = tmp_path / "killed.jsonl"
    kills = kill_often(commands, command, output, 40, seconds, 400, seed=12)
    write_table(tmp_path / "kills.md", kills)
    assert sum(kill.torn_bytes > 0 for kill in kills) >= 20 and kills[-1].lines < 400
    assert commands.run(command) == 0, commands.said()
    assert by_id(output) == by_id(tmp_path / "whole.jsonl")


def write_table(path: Path, kills: list[Kill]) -> None:
    """The kills as a table of Markdown."""
    rows = [
        f"| {number} | {kill.seconds:.2f} | {'inside a write' if kill.in_write else 'any'} | {kill.lines} | "
        f"{kill.torn_bytes} |\n"
        for number, kill in enumerate(kills, start=1)
    ]
    path.write_text("| kill | after s | instant | whole lines | torn bytes |\n|---|---|---|---|---|\n" + "".join(rows))
