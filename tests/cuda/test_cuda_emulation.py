"""The emulation reports what it promises to, and nothing where there is nothing: on kernels with one fault each."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import pytest
import torch
from emulation import ROOT

# The order of `Fault` in faults.cu -> what is said.
FAULTS = {
    "skipped barrier": r"a thread ends while others wait at a barrier|threads wait for each other",
    "ended thread": r"a barrier that ended threads don't reach \(line \d+\)|a thread ends while others wait",
    "other barrier": r"threads meet at different barriers: thread \d+ waits at __syncthreads \(line \d+\)",
    "missing lane": r"lanes? .*ended|threads wait for each other: .*__shfl_xor_sync \(line \d+\)",
    "lane outside the mask": r"a shuffle reads a lane outside its mask",
    "other collective": r"lanes of a warp meet at different collectives: .*__syncwarp",
    "misaligned copy": r"cp.async: an address is not 16-byte aligned",
    "shared memory overrun": r"shared memory is written past its end",
    "misaligned vector": r"a vector is not aligned to its size, thread \d+",
}
SILENT_FAULTS = ("missing barrier", "missing wait", "late wait")  # these show in results
NUMBERS = {name: number for number, name in enumerate(("none", *FAULTS, *SILENT_FAULTS))}
SEEDS = range(12)


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    module = tmp_path_factory.mktemp("faults") / "faults.so"
    sources = [ROOT / "tests/cuda/faults.cu", *sorted((ROOT / "csrc/cuda/emu").glob("*.cpp"))]
    flags = [
        "-std=c++17",
        "-O1",
        "-fPIC",
        "-shared",
        "-DMOELENS_CUDA_EMULATION",
        f"-I{ROOT / 'csrc/cuda'}",
        "-x",
        "c++",
    ]
    subprocess.run([os.environ.get("CXX", "g++"), *flags, *map(str, sources), "-o", str(module)], check=True)
    library = ctypes.CDLL(str(module))
    library.run_fault.restype = library.run_launch.restype = ctypes.c_char_p
    library.run_launch.argtypes = [ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint64]
    return library


def run(faults: ctypes.CDLL, fault: str, seed: int) -> tuple[str, torch.Tensor]:
    given, out = torch.arange(64, dtype=torch.float32), torch.full((64,), -1.0)
    pointers = (ctypes.c_void_p(given.data_ptr()), ctypes.c_void_p(out.data_ptr()))
    return faults.run_fault(NUMBERS[fault], ctypes.c_uint64(seed), *pointers).decode(), out


def test_nothing_is_reported_of_a_sound_kernel(faults: ctypes.CDLL) -> None:
    for seed in SEEDS:
        said, out = run(faults, "none", seed)
        assert said == ""
        assert torch.equal(out, 2 * torch.arange(63, -1, -1, dtype=torch.float32))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_reported_with_its_place(faults: ctypes.CDLL, fault: str) -> None:
    import re

    for seed in SEEDS:
        said, _ = run(faults, fault, seed)
        assert re.search(FAULTS[fault], said), said
        assert said.startswith("reverse_kernel, block (0, 0, 0): ")


@pytest.mark.parametrize("fault", SILENT_FAULTS)
def test_what_is_read_too_early_is_nan(faults: ctypes.CDLL, fault: str) -> None:
    results = [run(faults, fault, seed)[1] for seed in SEEDS]
    assert any(out.isnan().any() for out in results)
    if fault != "missing barrier":  # that one depends on who comes first
        assert all(out.isnan().all() for out in results)


def test_launches_beyond_the_limits_are_refused(faults: ctypes.CDLL) -> None:
    assert faults.run_launch(1, 1, 32, 0) == b""
    assert b"an empty grid or block" in faults.run_launch(0, 1, 32, 0)
    assert b"an empty grid or block" in faults.run_launch(1, 1, 0, 0)
    assert b"the grid is too large" in faults.run_launch(1, 65536, 32, 0)
    assert b"the block is too large" in faults.run_launch(1, 1, 1025, 0)
    assert b"more dynamic shared memory than is allowed" in faults.run_launch(1, 1, 32, 48 * 1024 + 1)


def test_other_processors_switch_stacks_by_ucontext(tmp_path: Path) -> None:
    source = (ROOT / "csrc/cuda/emu/fiber.cpp").read_text(encoding="utf-8")
    portable = tmp_path / "fiber.cpp"
    portable.write_text(source.replace("#if defined(__x86_64__)", "#if 0"), encoding="utf-8")
    main = tmp_path / "main.cpp"
    main.write_text(
        """
#include <cstdio>
#include "fiber.h"
using moelens::emulation::Fibers;
static Fibers fibers;
static void* pointers[2];
static int turn = 0;
static void body() {
    for (int i = 0; i < 3; ++i) {
        std::printf("%d", turn);
        fibers.leave(pointers[turn], i == 2);
    }
}
int main() {
    for (int i = 0; i < 2; ++i) pointers[i] = fibers.prepare(i, body);
    for (int i = 0; i < 6; ++i) {
        turn = i % 2;
        fibers.enter(turn, pointers[turn]);
    }
}
"""
    )
    program = tmp_path / "program"
    command = [os.environ.get("CXX", "g++"), "-std=c++17", f"-I{ROOT / 'csrc/cuda/emu'}", main, portable, "-o", program]
    subprocess.run([str(part) for part in command], check=True)
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == "010101"
