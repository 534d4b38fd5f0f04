"""GPUs, their driver and their toolkit, as nvidia-smi and nvcc tell them; moelens needs none of these."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence

from moelens.doctor.finding import Finding

_TIMEOUT_SECONDS = 20.0
_FIELDS = ("name", "memory.total", "driver_version", "pcie.link.gen.max", "pcie.link.width.max")
# GB/s of one lane in one direction, after encoding
_LANE_GB_PER_SECOND = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}

Run = Callable[[Sequence[str]], str | None]


def run_program(command: Sequence[str]) -> str | None:
    """What a program prints, None where it is missing, fails or hangs."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *command[1:]], capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def gpu_findings(run: Run = run_program) -> Iterator[Finding]:
    """Each GPU with the speed of its link, and the toolkit."""
    listed = run(["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"])
    rows = [row.split(", ") for row in (listed or "").splitlines() if row.strip()]
    if not rows:
        yield Finding("GPU", "none found: the model runs on the processor")
        return
    for index, row in enumerate(rows):
        yield _gpu(index, row)
    version = re.search(r"release ([\d.]+)", run(["nvcc", "--version"]) or "")
    yield Finding("CUDA toolkit", version[1] if version else "none (only needed to build kernels)")


def _gpu(index: int, row: Sequence[str]) -> Finding:
    if len(row) != len(_FIELDS):
        return Finding(f"GPU {index}", ", ".join(row))
    name, memory, driver, generation, width = row
    value = f"{name}, {memory} MiB, driver {driver}"
    if generation.isdigit() and width.isdigit() and int(generation) in _LANE_GB_PER_SECOND:
        speed = _LANE_GB_PER_SECOND[int(generation)] * int(width)
        value += f", PCIe {generation} x{width}: {speed:.1f} GB/s by its specification"
        if int(width) < 16:
            problem = f"its link has {width} lanes of 16"
            return Finding(f"GPU {index}", value, problem, "put it into a slot with 16 lanes")
    return Finding(f"GPU {index}", value)
