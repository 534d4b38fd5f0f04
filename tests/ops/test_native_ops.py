"""NativeOps as a whole: the choice of instruction set and threads, calls from several threads, and after a fork."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from moelens import _cpu
from moelens.errors import KernelError
from moelens.ops.interface import Matrix
from moelens.ops.native import NativeOps, choose_isa, schedulable_cores


def test_the_isa_is_the_arguments_or_the_environments_or_the_best() -> None:
    assert choose_isa(None, {}) == _cpu.best_isa() == _cpu.available_isas()[0]
    assert choose_isa(None, {"MOELENS_CPU_ISA": "scalar"}) == "scalar"
    assert choose_isa(_cpu.best_isa(), {"MOELENS_CPU_ISA": "scalar"}) == _cpu.best_isa()
    assert choose_isa(None, {"MOELENS_CPU_ISA": ""}) == _cpu.best_isa()


def test_an_isa_that_the_machine_lacks_is_refused() -> None:
    with pytest.raises(KernelError, match=r"MOELENS_CPU_ISA asks for 'sse9', but this machine can run only .*scalar"):
        choose_isa(None, {"MOELENS_CPU_ISA": "sse9"})
    with pytest.raises(KernelError, match=r"the argument isa asks for 'sse9', but this machine can run only .*scalar"):
        NativeOps(1, "sse9")
    with pytest.raises(ValueError, match=r"isa 'sse9' is not one that this machine can run; it can run: .*scalar"):
        _cpu.Kernels("sse9", 1)


def test_the_isas_are_what_the_operating_system_lists() -> None:
    flags = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), ""
    ).split()
    needed = {
        "amx_bf16": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"},
        "avx512_bf16": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16"},
        "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
        "avx2": {"avx2", "fma", "f16c"},
        "scalar": set(),
    }
    assert _cpu.available_isas() == [isa for isa, features in needed.items() if features <= set(flags)]


def test_threads_must_be_positive() -> None:
    with pytest.raises(ValueError, match="threads must be at least 1, found 0"):
        NativeOps(0)


def test_cores_are_bounded_by_affinity_and_quota(tmp_path: Path) -> None:
    mine = len(os.sched_getaffinity(0))
    quota = tmp_path / "cpu.max"
    assert schedulable_cores(quota) == mine
    for text, expected in (
        ("max 100000", mine),
        ("50000 100000", 1),
        ("100000 100000", 1),
        ("9900000 100000", mine),
        ("?", mine),
    ):
        quota.write_text(text)
        assert schedulable_cores(quota) == expected
    assert NativeOps().threads == schedulable_cores()


def matrix_of(ops: NativeOps, weight: torch.Tensor) -> Matrix:
    storage = torch.empty(ops.matrix_shape(*weight.shape, weight.dtype), dtype=weight.dtype)
    ops.pack_matrix(weight, storage)
    return Matrix(storage, *weight.shape)


def test_calls_from_several_threads_wait_for_each_other() -> None:
    ops, weight = NativeOps(2), torch.randn(300, 200)
    matrix = matrix_of(ops, weight)
    inputs = [torch.randn(rows, 200) for rows in range(1, 60)]
    expected = [ops.linear(x, matrix) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for out, wanted in zip(pool.map(lambda x: ops.linear(x, matrix), inputs), expected, strict=True):
            assert torch.equal(out, wanted)


def test_packing_runs_on_several_threads() -> None:
    ops, weight = NativeOps(1), torch.randn(40 * 64, 70)
    together = matrix_of(ops, weight).data
    apart = torch.full_like(together, float("nan"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda row: ops.pack_matrix(weight[row : row + 64], apart, row), range(0, len(weight), 64)))
    assert torch.equal(apart, together)


FORK = """
import os, torch
from moelens.ops.native import NativeOps
ops, x, weight = NativeOps(3), torch.randn(500, 64), torch.randn(64)
expected = ops.rms_norm(x, weight, 1e-6)
child = os.fork()
if child == 0:
    for _ in range(20):
        assert torch.equal(ops.rms_norm(x, weight, 1e-6), expected)
    assert torch.equal(NativeOps(2).rms_norm(x, weight, 1e-6), expected)
    del ops
    os._exit(7)
assert torch.equal(ops.rms_norm(x, weight, 1e-6), expected)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""


def test_a_forked_process_computes_alone() -> None:
    with subprocess.Popen([sys.executable, "-c", FORK], start_new_session=True) as process:
        try:
            assert process.wait(timeout=60) == 0
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
