"""Runs moelens and its peers on the same work, in turn, each in a process of its own, and prints a table.

    python -m bench.peers --model MODEL [MODEL ...] --workload 64x128x64 32x512x128 --peers moelens transformers

Tokens per second count prompt and generated tokens over the whole run without loading; the ratio is the median over
the repeats of moelens' tokens per second over the peer's in the same repeat.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.peers.workload import Workload

FOLDER = Path(__file__).parent
COLUMNS = (
    "model",
    "workload",
    "peer",
    "tok/s",
    "prefill tok/s",
    "decode tok/s",
    "load s",
    "peak RSS MiB",
    "moelens is faster by",
    "same first token",
)
MODULES = {"moelens": "moelens", "transformers": "transformers"}


def run_peer(peer: str, model: str, workload: str, threads: int) -> dict[str, object]:
    with tempfile.NamedTemporaryFile(suffix=".json") as output:
        command = [sys.executable, str(FOLDER / f"run_{peer}.py"), model, workload, str(threads), output.name]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return json.loads(Path(output.name).read_text())


def describe(workload: Workload, runs: list[dict[str, object]], ours: list[dict[str, object]]) -> str:
    tokens = workload.requests * (workload.prompt_tokens + workload.output_tokens)

    def median(value: object) -> float:
        return statistics.median(value(run) for run in runs)

    decoded = workload.requests * (workload.output_tokens - 1)
    cells = [
        f"{median(lambda r: tokens / r['seconds']):.0f}",
        f"{median(lambda r: workload.requests * workload.prompt_tokens / r['prefill_seconds']):.0f}",
        f"{median(lambda r: decoded / r['decode_seconds']):.0f}",
        f"{median(lambda r: r['load_seconds']):.1f}",
        f"{median(lambda r: r['peak_rss_bytes'] / 2**20):.0f}",
    ]
    ratio = (
        statistics.median(run["seconds"] / our["seconds"] for run, our in zip(runs, ours, strict=True)) if ours else 0
    )
    agree = [a == b for a, b in zip(runs[0]["first_tokens"], ours[0]["first_tokens"], strict=True)] if ours else [0]
    return " | ".join([*cells, f"{ratio:.2f}", f"{100 * sum(agree) / len(agree):.0f}%"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True)
    parser.add_argument("--workload", nargs="+", default=["64x128x64", "32x512x128", "256x64x32"])
    parser.add_argument("--peers", nargs="+", default=list(MODULES), choices=list(MODULES))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    peers = [peer for peer in arguments.peers if importlib.util.find_spec(MODULES[peer])]
    for peer in set(arguments.peers) - set(peers):
        print(f"{peer} is not installed and is left out: pip install {MODULES[peer]}", file=sys.stderr)
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + " --- |" * len(COLUMNS))
    for model in arguments.model:
        for text in arguments.workload:
            runs: dict[str, list[dict[str, object]]] = {peer: [] for peer in peers}
            for _ in range(arguments.repeats):
                for peer in peers:
                    runs[peer].append(run_peer(peer, model, text, arguments.threads))
            for peer in peers:
                row = describe(Workload.parse(text), runs[peer], runs.get("moelens", []))
                print(
                    f"| {Path(model).name} | {Workload.parse(text)} | {peer} {runs[peer][0]['version']} | {row} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
