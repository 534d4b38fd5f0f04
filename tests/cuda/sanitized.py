"""Runs every op under a sanitizer: ThreadSanitizer, where each CUDA thread is a fiber, or AddressSanitizer.

    python tests/cuda/sanitized.py thread|address FOLDER

What no barrier orders is a race of threads; what lies past the ends of a tensor is an address.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-std=c++17", "-O1", "-g1", "-DMOELENS_CUDA_EMULATION", "-Wno-unknown-pragmas"]


def find_faults(root: Path, folder: Path, sanitizer: str) -> list[str]:
    """What the sanitizer says of the kernels in `root`, a line each; compiles in `folder` what changed since."""
    compiler, cuda = os.environ.get("CXX", "g++"), root / "csrc" / "cuda"
    watched = [compiler, *FLAGS, f"-fsanitize={sanitizer}", f"-I{cuda}", "-x", "c++"]
    scheduler = watched
    if sanitizer == "thread":
        watched.append("-DMOELENS_RACE_CHECK")
        # The scheduler orders the threads, so it must not be watched itself.
        scheduler = [part for part in watched if part != "-fsanitize=thread"]
    commands = dict.fromkeys(sorted((cuda / "emu").glob("*.cpp")), scheduler)
    commands |= dict.fromkeys([*sorted(cuda.glob("*.cu")), ROOT / "tests" / "cuda" / "every_op.cpp"], watched)
    objects = [compile_changed(command, source, folder) for source, command in commands.items()]
    program = folder / "every_op"
    subprocess.run([compiler, f"-fsanitize={sanitizer}", *map(str, objects), "-o", str(program)], check=True)
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    try:
        done = subprocess.run(
            [str(program)], capture_output=True, text=True, errors="replace", env=environment, timeout=600
        )
    except subprocess.TimeoutExpired:
        return ["the program does not end"]
    said = re.findall(r"SUMMARY: (?:Thread|Address)Sanitizer: (.*)|what\(\): +(.*)", done.stderr)
    lines = [fault or error for fault, error in said]
    if done.returncode and not lines:
        lines.append(f"the program ended with {done.returncode}: {done.stderr[-500:]}")
    return lines


def compile_changed(command: list[str], source: Path, folder: Path) -> Path:
    """The object of `source` in `folder`, compiled if it or what it includes is newer."""
    target = folder / f"{source.name}.o"
    depends = target.with_suffix(".d")
    newest = float("inf")
    if target.exists() and depends.exists():
        names = depends.read_text().replace("\\\n", " ").split(":", 1)[1].split()
        newest = max((Path(name).stat().st_mtime for name in names if Path(name).exists()), default=newest)
    if not target.exists() or newest > target.stat().st_mtime:
        subprocess.run([*command, "-MMD", "-MF", str(depends), "-c", str(source), "-o", str(target)], check=True)
    return target


if __name__ == "__main__":
    kind, place = sys.argv[1], Path(sys.argv[2])
    place.mkdir(parents=True, exist_ok=True)
    sys.exit("\n".join(find_faults(ROOT, place, kind)) or 0)
