"""The Ray Data example: two workers, one of which is killed, write what run-batch writes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_config import CONFIG

ROOT = Path(__file__).resolve().parents[2]


def test_a_file_is_cut_at_lines(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'ray[data]')")
    import ray_data

    path = tmp_path / "in.jsonl"
    path.write_bytes(b"one\n\n" + b"x" * (3 << 20) + b"\nfour\nfive")
    parts = list(ray_data.cut(str(path), 2))
    content = path.read_bytes()
    assert [part["first_line"] for part in parts] == [1, 3, 5]
    assert b"".join(content[part["begin"] : part["end"]] for part in parts) == content
    assert [content[part["begin"] :][:4] for part in parts] == [b"one\n", b"xxxx", b"five"]
    assert list(ray_data.lines_of(io.BytesIO(b"a\r\nb\n\nc"))) == [b"a\r\n", b"b\n", b"\n", b"c"]
    ray_data.write_whole(ray_data.part_path(str(tmp_path / "out"), 3).replace("out/", ""), b"x")
    assert list(ray_data.cut(str(tmp_path / "part-0000000003.jsonl"), 2)) == [{"first_line": 1, "begin": 0, "end": 1}]
    path.write_bytes(b"")
    assert list(ray_data.cut(str(path), 2)) == []


@pytest.mark.slow
def test_two_workers_write_what_one_job_writes(byte_tokenizer_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'ray[data]')")
    from moelens import run_batch

    model = tmp_path / "model"
    model.mkdir()
    for path in byte_tokenizer_folder.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    (model / "config.json").write_text(json.dumps(CONFIG))
    lines = [request(i) for i in range(240)]
    (tmp_path / "in.jsonl").write_text("".join(f"{line}\n" for line in lines))
    run_batch(tmp_path / "in.jsonl", tmp_path / "one.jsonl", model=model, load_format="dummy", ordered=True)
    results = tmp_path / "results"
    log = tmp_path / "log.txt"
    killed = run_and_kill_a_worker(command(tmp_path, model), results, log)
    assert killed, log.read_text()[-3000:]
    parts = sorted(results.glob("part-*.jsonl"))
    assert len(parts) == 12 and not list(results.glob("*.partial"))
    assert b"".join(part.read_bytes() for part in parts) == (tmp_path / "one.jsonl").read_bytes()
    parts[3].unlink()
    again = subprocess.run(command(tmp_path, model), capture_output=True, text=True, check=True)
    assert "1 parts to run" in again.stdout and "part 61: 20 results" in again.stdout
    assert b"".join(part.read_bytes() for part in parts) == (tmp_path / "one.jsonl").read_bytes()


def request(index: int) -> str:
    fields: dict[str, Any] = {"max_tokens": 20 + index % 30, "temperature": index % 2, "ignore_eos": True}
    if index % 17 == 5:
        return "not json"
    return json.dumps({"prompt": f"Line {index}", **fields})


def command(folder: Path, model: Path) -> list[str]:
    arguments = ["-i", str(folder / "in.jsonl"), "-o", str(folder / "results"), "--model", str(model)]
    arguments += ["--workers", "2", "--part-lines", "20", "--num-threads", "1", "--load-format", "dummy"]
    return [sys.executable, str(ROOT / "examples/ray_data.py"), *arguments, "--cpus-per-worker", "0.5"]


def run_and_kill_a_worker(argv: list[str], results: Path, log: Path) -> int:
    """Kills a worker that runs a part when some are written; returns its process id."""
    killed = 0
    with log.open("w") as file:
        process = subprocess.Popen(argv, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        while process.poll() is None:
            if not killed and len(list(results.glob("part-*.jsonl"))) >= 2:
                killed = kill_one_of(process.pid)
            time.sleep(0.05)
    assert process.returncode == 0, log.read_text()[-3000:]
    return killed


def kill_one_of(driver: int) -> int:
    """Kill a worker that the driver's Ray has started: they descend from it."""
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            name = status.read_bytes().split(b"\0")[0]
            process = int(status.parent.name)
            if name.startswith(b"ray::MapWorker") and driver in ancestors(process):
                os.kill(process, signal.SIGKILL)
                return process
        except (OSError, ValueError):
            continue
    return 0


def ancestors(process: int) -> list[int]:
    found = []
    while process > 1:
        process = int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])
        found.append(process)
    return found
