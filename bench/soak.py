"""A long job, and whether its memory stays what it was after warming up.

    python bench/soak.py MODEL [--minutes 60] [--lines 400000] [--picture soak.png]

Makes a file of requests of every kind (chats and completions, shared and private beginnings, several samples, stop
strings, log-probabilities, structured outputs, faulty lines), runs `python -m moelens run-batch` on it, reads the
process's resident memory every few seconds, stops the job with SIGTERM when the time is up, and prints how far the
memory strayed from its mean after the first sixth of the time. With --picture, draws it (needs matplotlib).
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SAMPLE_SECONDS = 5.0
WARM_UP_SHARE = 1 / 6
SYSTEM = "You are a careful assistant. Answer briefly, in plain words, and say so when you don't know. " * 8
FORM = {"type": "object", "properties": {"word": {"type": "string", "maxLength": 12}, "size": {"type": "integer"}}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--lines", type=int, default=400_000, help="of the input; more than the time suffices for")
    parser.add_argument("--kv-cache-memory-bytes", default="64MiB")
    parser.add_argument("--max-num-seqs", default="32")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--samples", type=Path, help="where to write the seconds and bytes, as CSV")
    found = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        given, output = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        with given.open("w") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines(found.lines))
        command = [sys.executable, "-m", "moelens", "run-batch", "-i", str(given), "-o", str(output)]
        command += ["--model", found.model, "--max-num-seqs", found.max_num_seqs, "--num-threads", "1"]
        command += ["--kv-cache-memory-bytes", found.kv_cache_memory_bytes, "--max-model-len", "1024"]
        samples, status = watch(command, output, found.minutes * 60)
        done = output.read_bytes().count(b"\n")
    report(samples, status, done)
    if found.samples is not None:
        found.samples.write_text("".join(f"{seconds:.1f},{nbytes}\n" for seconds, nbytes in samples))
    if found.picture is not None:
        draw(samples, found.picture)


def lines(count: int) -> Iterator[dict[str, Any]]:
    """Requests of every kind, of lengths that vary."""
    for i in range(count):
        fields: dict[str, Any] = {"max_tokens": 4 + i * 13 % 60, "temperature": (i % 3) * 0.5}
        kind = i % 10
        if kind == 0:
            yield {"prompt": f"Line {i}", "temperature": -1}
        elif kind == 1:
            yield {"prompt": f"Name {i}: ", "structured_outputs": {"json": FORM}, **fields}
        elif kind == 2:
            yield {"prompt": "One of " * (i % 90), "n": 3, **fields, "temperature": 1.0}
        elif kind == 3:
            yield {"prompt": f"Once {i}", "logprobs": 3, "stop": ["the", "."], **fields}
        elif kind < 7:
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"What is {i}?"}]
            text = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
            body = {"prompt": text, **fields}
            yield {"custom_id": f"c{i}", "method": "POST", "url": "/v1/completions", "body": body}
        else:
            yield {"prompt": f"{i} " * (1 + i * 7 % 150), **fields}


def watch(command: list[str], output: Path, seconds: float) -> tuple[list[tuple[float, int]], int]:
    """Run a command for so long, from its first result on; its memory as (seconds, bytes), and its exit status."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (output.exists() and output.stat().st_size):
        time.sleep(0.1)
    begin = time.monotonic()
    samples: list[tuple[float, int]] = []
    while process.poll() is None and time.monotonic() - begin < seconds:
        samples.append((time.monotonic() - begin, rss_bytes(process.pid)))
        time.sleep(SAMPLE_SECONDS)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    return samples, process.wait()


def rss_bytes(process: int) -> int:
    """A process's resident memory."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0  # it has just ended


def report(samples: list[tuple[float, int]], status: int, done: int) -> None:
    warm = samples[-1][0] * WARM_UP_SHARE
    sizes = [nbytes for seconds, nbytes in samples if seconds >= warm and nbytes]
    mean = sum(sizes) / len(sizes)
    print(f"{samples[-1][0] / 60:.1f} minutes, {done} results, exit status {status} (143: stopped by us)")
    print(f"RSS after the first {warm / 60:.1f} minutes: mean {mean / 1e6:.1f} MB, ", end="")
    print(f"{(min(sizes) / mean - 1) * 100:+.2f} % to {(max(sizes) / mean - 1) * 100:+.2f} %")


def draw(samples: list[tuple[float, int]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.5), layout="constrained")
    axes.plot([seconds / 60 for seconds, _ in samples], [nbytes / 1e6 for _, nbytes in samples])
    axes.axvline(samples[-1][0] / 60 * WARM_UP_SHARE, linestyle=":", color="gray")
    axes.set(xlabel="minutes", ylabel="RSS in MB", ylim=(0, None), title="Resident memory of a job")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
