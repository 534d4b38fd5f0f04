"""Registers and spills of the GPU's kernels, as the compiler reported them in the latest build.

python bench/cuda_registers.py            prints the table
python bench/cuda_registers.py --write    writes it into docs/cuda_registers.md, which a test compares builds with
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "docs" / "cuda_registers.md"
BUILDS = "ninja-*/csrc/cuda/*.cu.o.ptxas"
HEAD = """\
# Registers and spills of the kernels

Written by `python bench/cuda_registers.py --write` after a build for all architectures. A cell is the registers of a
thread, and "+ n spilled" where n bytes of them are kept in memory.
"""


@dataclass(frozen=True)
class Usage:
    """What one kernel takes on one architecture."""

    kernel: str
    arch: str
    registers: int
    spilled_bytes: int

    def __str__(self) -> str:
        return str(self.registers) + (f" + {self.spilled_bytes} spilled" if self.spilled_bytes else "")


def read_reports(paths: Iterable[Path]) -> list[Usage]:
    """All kernels in ptxas' reports (nvcc -Xptxas -v)."""
    pattern = re.compile(
        r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers",
        re.DOTALL,
    )
    found = [match for path in paths for match in pattern.findall(path.read_text(encoding="utf-8"))]
    mangled = "\n".join(entry for entry, *_ in found)
    plain = subprocess.run(["c++filt"], input=mangled, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(
        (
            Usage(shorten(name), arch, int(registers), int(stores) + int(loads))
            for name, (_, arch, stores, loads, registers) in zip(plain, found, strict=True)
        ),
        key=lambda usage: (usage.kernel, int(usage.arch.removeprefix("sm_"))),
    )


def shorten(signature: str) -> str:
    """`void moelens::f<moelens::TileShape<1, 1, 4>, float>(…)` -> `f<TileShape<1, 1, 4>, float>`."""
    name = signature.removeprefix("void ").replace("moelens::", "")
    return name[: name.rindex("(")] if name.endswith(")") else name


def as_table(usages: list[Usage]) -> str:
    archs = sorted({usage.arch for usage in usages}, key=lambda arch: int(arch.removeprefix("sm_")))
    lines = ["| kernel | " + " | ".join(archs) + " |", "| --- |" + " ---: |" * len(archs)]
    for kernel in dict.fromkeys(usage.kernel for usage in usages):
        cells = {usage.arch: str(usage) for usage in usages if usage.kernel == kernel}
        lines.append(f"| `{kernel}` | " + " | ".join(cells.get(arch, "") for arch in archs) + " |")
    return "\n".join(lines) + "\n"


def read_record() -> tuple[str, list[Usage]]:
    """The compiler's release and the table in the record."""
    text = RECORD.read_text(encoding="utf-8")
    release = re.search(r"Compiler: nvcc (\S+)\.$", text, re.MULTILINE)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert release, f"{RECORD} names no compiler"
    usages = []
    for kernel, *cells in rows[2:]:
        for arch, cell in zip(rows[0][1:], cells, strict=True):
            match = re.fullmatch(r"(\d+)(?: \+ (\d+) spilled)?", cell)
            assert match, f"{RECORD}: {cell!r} of {kernel}"
            usages.append(Usage(kernel.strip("`"), arch, int(match[1]), int(match[2] or 0)))
    return release[1], usages


def compiler_release(nvcc: str) -> str:
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release (\S+),", said)
    assert match, said
    return match[1]


def compiler_of_build() -> str | None:
    """The release of the nvcc that made the latest build."""
    graphs = sorted((ROOT / "build").glob("ninja-*/build.ninja"), key=lambda path: path.stat().st_mtime)
    for graph in reversed(graphs):
        found = re.search(r"^nvcc = (.+)$", graph.read_text(encoding="utf-8"), re.MULTILINE)
        if found and Path(found[1]).exists():
            return compiler_release(found[1])
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    usages, release = read_reports(sorted((ROOT / "build").glob(BUILDS))), compiler_of_build()
    if not usages or release is None:
        sys.exit("there is no build of the GPU's kernels: MOELENS_CUDA=1 python setup.py build_ext --inplace")
    text = f"{HEAD}\nCompiler: nvcc {release}.\n\n{as_table(usages)}"
    if arguments.write:
        RECORD.write_text(text, encoding="utf-8")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
