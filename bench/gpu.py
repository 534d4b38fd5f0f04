"""All that is to be known of moelens on a GPU, by one command of ten minutes at most: a table, and JSON.

    python bench/gpu.py [OUTPUT.json] [--parts build tests links products whole_run] [--minutes 10]

    build      moelens in place, with this machine's own torch, for its own GPU
    tests      every kernel against float64: pytest -m gpu
    links      bandwidth to the device, from it, and both at once, by the size of a copy
    products   the experts by our kernels and by torch's grouped product, beside cuBLAS and the chip's peak
    whole_run  a Mixtral-8x7B-shaped model of random weights held to 16 GB: a step against its busiest lane, tokens/s,
               and the same by transformers with accelerate's offloading and by vLLM's, where these are installed

Each part is a process with its own share of the time, so one that fails or hangs leaves the others alone. Nothing of
this has run on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Part -> its command and its share of the time.
PARTS: dict[str, tuple[list[str], float]] = {
    "build": (["setup.py", "-q", "build_ext", "--inplace"], 0.2),
    "tests": (["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"], 0.15),
    "links": (["bench/gpu_links.py"], 0.1),
    "products": (["bench/gpu_products.py"], 0.15),
    "whole_run": (["bench/gpu_whole_run.py"], 0.4),
}
Row = dict[str, object]


def run_part(part: str, seconds: float) -> dict[str, object]:
    """What a part reports: its exit status, its last lines, its time, and the rows that it wrote."""
    command, _ = PARTS[part]
    environment = {**os.environ, "MOELENS_CUDA": "1", "MOELENS_CUDA_ARCHS": "native", "PYTHONPATH": str(ROOT)}
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rows.json"
        own = command[0].startswith("bench/")
        arguments = [sys.executable, *command, *([str(output), str(seconds)] if own else [])]
        try:
            done = subprocess.run(
                arguments, cwd=ROOT, env=environment, text=True, timeout=seconds + 5, capture_output=True
            )
            status, said = done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired as error:
            status, said = 124, f"stopped after {error.timeout:.0f} s\n" + _text(error.stdout) + _text(error.stderr)
        rows = json.loads(output.read_text()) if output.exists() else []
    return {
        "status": status,
        "seconds": round(time.perf_counter() - begin, 1),
        "last_lines": said.strip().splitlines()[-5:],
        "rows": rows,
    }


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def describe_machine() -> Row:
    """The GPU, its link, the software and the processor, for the head of the report."""
    import torch

    query = "name,driver_version,memory.total,pcie.link.gen.max,pcie.link.width.max,compute_cap"
    try:
        found = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True, timeout=30
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        found = f"nvidia-smi: {error}"
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {
        "gpu": found,
        "torch": torch.__version__,
        "cuda_of_torch": torch.version.cuda,
        "processor": models[0].partition(":")[2].strip() if models else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "commit": commit or "not a checkout",
    }


def table(part: str, rows: list[Row]) -> str:
    """Rows as Markdown, a column for every name that occurs."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"\n{part}\n", "| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(_cell(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", type=Path, default=Path("gpu.json"))
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=10.0)
    arguments = parser.parse_args()
    report: dict[str, object] = {"machine": describe_machine()}
    for name, value in describe_machine().items():
        print(f"{name}: {value}", flush=True)
    failed = 0
    end = time.monotonic() + 60 * arguments.minutes
    for i, part in enumerate(arguments.parts):
        # What earlier parts left of their time goes to the later ones.
        shares = sum(PARTS[other][1] for other in arguments.parts[i:])
        found = run_part(part, max(1.0, (end - time.monotonic()) * PARTS[part][1] / shares - 5))
        report[part] = found
        failed += found["status"] != 0
        print(f"\n=== {part}: exit status {found['status']}, {found['seconds']} s", flush=True)
        rows = found["rows"]
        assert isinstance(rows, list)
        print(table(part, rows) if rows else "\n".join(map(str, found["last_lines"])), flush=True)
        arguments.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {arguments.output}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
