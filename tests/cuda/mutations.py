"""Breaks the kernels one way at a time and asks the checks whether they notice.

    python tests/cuda/mutations.py [WORD]     a table of the mutants whose name or check has WORD in it

Each barrier, each wait and each guard of csrc/cuda goes once. `results`: the tests of tests/cuda fail; `thread` and
`address`: a sanitizer reports it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emulation import ROOT, build
from sanitized import compile_changed, find_faults

CUDA = ROOT / "csrc" / "cuda"
# Which tests execute a file's kernels.
TESTS = {
    "norm.cuh": "test_cuda_rows.py",
    "route.cuh": "test_cuda_rows.py",
    "split_qkv.cuh": "test_cuda_rows.py",
    "sort_by_expert.cuh": "test_cuda_products.py",
    "product.cuh": "test_cuda_products.py",
    "linear.cuh": "test_cuda_products.py",
    "experts.cuh": "test_cuda_products.py",
    "kv.cuh": "test_cuda_kv.py",
}


@dataclass(frozen=True)
class Mutant:
    """The n-th `old` of a file is replaced by `new`; `check` is what must notice."""

    file: str
    old: str
    new: str
    check: str  # results, thread or address
    occurrence: int = 0

    @property
    def name(self) -> str:
        change = f"drop {self.old}" if self.new in ("", ";") else f"{self.old} → {self.new}"
        return f"{self.file} #{self.occurrence + 1}: {change}"

    def apply(self, root: Path) -> None:
        path = root / "csrc" / "cuda" / self.file
        parts = (CUDA / self.file).read_text(encoding="utf-8").split(self.old)
        assert len(parts) > self.occurrence + 1, f"{self.file} has no {self.old} #{self.occurrence + 1}"
        before, after = parts[: self.occurrence + 1], parts[self.occurrence + 1 :]
        path.write_text(self.old.join(before) + self.new + self.old.join(after), encoding="utf-8")

    def revert(self, root: Path) -> None:
        shutil.copyfile(CUDA / self.file, root / "csrc" / "cuda" / self.file)


def barriers() -> Iterator[Mutant]:
    """Every barrier there is."""
    for path in sorted(CUDA.glob("*.cuh")):
        text = path.read_text(encoding="utf-8")
        for barrier in ("__syncthreads();", "__syncwarp();"):
            for occurrence in range(text.count(barrier)):
                yield Mutant(path.name, barrier, ";", "thread", occurrence)


WAITS = (
    Mutant("product.cuh", "wait_for_copies<Shape::kStages - 2>();", ";", "results"),
    Mutant(
        "product.cuh", "wait_for_copies<Shape::kStages - 2>();", "wait_for_copies<Shape::kStages - 1>();", "results"
    ),
    Mutant("product.cuh", "commit_copies();", ";", "results"),
    Mutant("product.cuh", "commit_copies();", ";", "results", 1),
)

# Without conditions that only save work, as of a load of nothing but zeros.
GUARDS = (
    Mutant("norm.cuh", "if (row >= args.rows) return;", "", "results"),
    Mutant("route.cuh", "if (row >= args.rows) return;", "", "results"),
    Mutant("route.cuh", "expert < args.experts ? logits[expert] : -INFINITY", "logits[expert]", "address"),
    Mutant(
        "route.cuh",
        "expert < args.experts ? rank_logit(logit[i], expert) : 0",
        "rank_logit(logit[i], expert)",
        "results",
    ),
    Mutant("route.cuh", "if (is_chosen) {", "{", "results"),
    Mutant(
        "route.cuh",
        "is_chosen ? expf(chosen_logit - largest_logit) : 0.0f",
        "expf(chosen_logit - largest_logit)",
        "results",
    ),
    Mutant("split_qkv.cuh", "if (lane == 0) factors", "factors", "thread"),
    Mutant("split_qkv.cuh", "if (i >= 2 * args.pairs)", "if (i > 2 * args.pairs)", "results"),
    Mutant("split_qkv.cuh", "else if (i < args.pairs)", "else", "results"),
    Mutant("sort_by_expert.cuh", "pair < end ? args.ids[pair] : -1", "args.ids[pair]", "address"),
    Mutant("sort_by_expert.cuh", "expert >= 0 && lane == __ffs(equal) - 1", "expert >= 0", "thread"),
    Mutant("sort_by_expert.cuh", "if (thread < experts) {", "{", "address"),
    Mutant("sort_by_expert.cuh", "if (thread < experts) {", "{", "address", 1),
    Mutant("sort_by_expert.cuh", "if (lane == __ffs(equal) - 1) mine", "mine", "thread"),
    Mutant("sort_by_expert.cuh", "if (lane >= delta) through", "through", "results"),
    Mutant("sort_by_expert.cuh", "if (expert >= 0) {", "{", "address"),
    Mutant("product.cuh", "&& row < tile.end_row;", ";", "address"),
    Mutant("product.cuh", "&& depth + 8 * chunk_ < columns_;", ";", "address"),
    Mutant("product.cuh", "rows_[i] != nullptr && depth", "depth", "address"),
    Mutant("product.cuh", "global_panel < tile_.end_panel && ", "", "address"),
    Mutant("product.cuh", " && global_step < tile_.steps", "", "address"),
    Mutant("product.cuh", "if (row >= Shape::kRows) break;", "", "results"),
    Mutant("product.cuh", "if (panel >= tile.end_panel) return;", "", "results"),
    Mutant("product.cuh", "if (row >= tile.end_row) continue;", "", "results"),
    Mutant("linear.cuh", "args.columns % 4 == 0 && count == 4", "count == 4", "results"),
    Mutant("linear.cuh", "if (j < count) y[j]", "y[j]", "address"),
    Mutant("linear.cuh", "if (j < count) base[j]", "base[j]", "address"),
    Mutant("linear.cuh", "if (j < count) args.out", "args.out", "results"),
    Mutant("experts.cuh", "e < sorted.experts && ", "", "address"),
    Mutant("experts.cuh", "if (at.expert == args.sorted.experts) return;", "", "address"),
    Mutant("experts.cuh", "if (at.expert == args.sorted.experts) return;", "", "address", 1),
    Mutant(
        "experts.cuh",
        "i < args.columns; i += kCombineThreads",
        "i < args.term_columns; i += kCombineThreads",
        "results",
    ),
    Mutant("kv.cuh", "if (first + lane < end) {", "{", "address"),
    Mutant("kv.cuh", "min(rows.tokens, first + kTileTokens)", "first + kTileTokens", "address"),
)

# What no guard is, but is as easily got wrong: where things lie.
PLACES = (
    Mutant(
        "product.cuh",
        "multiply_fragments(sums[i][1], a[i], b0.y, b1.y);",
        "multiply_fragments(sums[i][1], a[i], b1.y, b0.y);",
        "results",
    ),
    Mutant("product.cuh", "group / 2 + group % 2 * 4", "group", "results"),
    Mutant("experts.cuh", "args.sorted.order[row] / args.active", "args.sorted.order[row]", "address"),
    Mutant("kv.cuh", "d % kValueColumns) * 2 + token % 2", "d % kValueColumns) * 2 + (token + 1) % 2", "results"),
)


def mutants() -> list[Mutant]:
    return [*barriers(), *WAITS, *GUARDS, *PLACES]


class Laboratory:
    """A copy of the sources in which mutants are built; what a mutant doesn't touch is compiled once."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        folder.mkdir(exist_ok=True)
        self._ready = build(ROOT, ROOT / "build" / "emulated")
        for part in ("cuda", "ops"):
            shutil.copytree(ROOT / "csrc" / part, folder / "csrc" / part)
        for kind in ("results", "thread", "address"):
            (folder / kind).mkdir()

    def notice(self, mutant: Mutant | None) -> str:
        """What the mutant's check says, or "" if it notices nothing."""
        if mutant is None:
            return self._failing_tests(set(TESTS.values())) or "; ".join(
                fault for kind in ("thread", "address") for fault in find_faults(self.root, self.root / kind, kind)
            )
        mutant.apply(self.root)
        try:
            if mutant.check == "results":
                return self._failing_tests({TESTS[mutant.file]})
            faults = find_faults(self.root, self.root / mutant.check, mutant.check)
            return faults[0] if faults else ""
        finally:
            mutant.revert(self.root)

    def _failing_tests(self, files: set[str]) -> str:
        """The first of the tests in these files that fails with the kernels as they are now."""
        module = self._module()
        environment = {**os.environ, "MOELENS_CUDA_EMU_MODULE": str(module)}
        tests = [str(ROOT / "tests" / "cuda" / file) for file in sorted(files)]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        failed = re.search(r"^(?:FAILED|ERROR) \S*::(\S+)", done.stdout, re.MULTILINE)
        if failed:
            return failed[1]
        if done.returncode in (-11, -6):
            return "the process crashes"
        assert done.returncode == 0, f"the tests can't be run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return ""

    def _module(self) -> Path:
        """The module of the kernels as they are now, beside what the project's own build has compiled already."""
        flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wno-unknown-pragmas"]
        command = [os.environ.get("CXX", "g++"), *flags, "-DMOELENS_CUDA_EMULATION", "-x", "c++"]
        folder = self.root / "results"
        own = [compile_changed(command, path, folder) for path in sorted((self.root / "csrc/cuda").glob("*.cu"))]
        name = f"ninja-{sysconfig.get_platform()}-{sys.implementation.cache_tag}-emulated"
        sources = (path for part in ("cuda", "ops") for path in (ROOT / "csrc" / part).rglob("*.cpp"))
        others = [ROOT / "build" / name / f"{path.relative_to(ROOT)}.o" for path in sources]
        module = folder / self._ready.name
        objects = [str(path) for path in [*own, *others]]
        subprocess.run([command[0], "-shared", *objects, "-o", str(module), "-pthread"], check=True)
        return module


def main() -> int:
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        laboratory = Laboratory(Path(folder))
        print("| mutant | check | what it said |\n| --- | --- | --- |")  # noqa: T201
        for mutant in mutants():
            if word in f"{mutant.check} {mutant.name}":
                said = laboratory.notice(mutant)
                missed += not said
                print(f"| `{mutant.name}` | {mutant.check} | {said or 'NOTHING'} |", flush=True)  # noqa: T201
    return missed


if __name__ == "__main__":
    sys.exit(main())
