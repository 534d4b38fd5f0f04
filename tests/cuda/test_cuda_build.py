"""What is built where: the toolkit that setup.py looks for, the module without a driver, registers and spills."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from emulation import ROOT

from bench.cuda_registers import BUILDS, Usage, compiler_of_build, read_record, read_reports
from moelens.errors import KernelError
from moelens.ops import cuda

ARCHS = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]


def run_setup(home: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """setup.py with no toolkit but the one at `home`, if any; nothing is built."""
    script = (
        "import pathlib, runpy, shutil, sys; shutil.which = lambda name: None\n"
        "exists = pathlib.Path.exists\n"
        f"pathlib.Path.exists = lambda self: exists(self) and (str(self).startswith({str(home)!r})"
        " or 'cuda' not in str(self))\n"
        "sys.argv = ['setup.py', '--name']\n"
        "names = runpy.run_path('setup.py', run_name='__main__')\n"
        "found = names['find_toolkit']()\n"
        "print('found', found and found.nvcc)"
    )
    environment = {name: value for name, value in os.environ.items() if "CUDA" not in name}
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env={**environment, **settings}, capture_output=True, text=True
    )


def make_toolkit(home: Path) -> None:
    for file in ("bin/nvcc", "include/cuda_runtime.h", "lib64/libcudart_static.a"):
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).touch()


def test_without_a_toolkit_one_line_says_so(tmp_path: Path) -> None:
    done = run_setup(tmp_path, MOELENS_CUDA="auto")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("moelens: ")]
    assert len(lines) == 1
    assert "/usr/local/cuda" in lines[0] and "pip install nvidia-cuda-nvcc" in lines[0]
    assert done.stdout.endswith("found None\n")


def test_a_toolkit_that_was_demanded_must_be_there(tmp_path: Path) -> None:
    done = run_setup(tmp_path, MOELENS_CUDA="1")
    assert done.returncode != 0 and "no complete CUDA toolkit" in done.stderr
    done = run_setup(tmp_path, MOELENS_CUDA="yes")
    assert done.returncode != 0 and "MOELENS_CUDA must be auto, 0 or 1, found 'yes'" in done.stderr


def test_the_named_toolkit_is_taken_unless_none_is_wanted(tmp_path: Path) -> None:
    make_toolkit(tmp_path / "cuda")
    home = str(tmp_path / "cuda")
    assert run_setup(tmp_path, CUDA_HOME=home).stdout.endswith(f"found {home}/bin/nvcc\n")
    assert run_setup(tmp_path, CUDA_HOME=home, MOELENS_CUDA="0").stdout.endswith("found None\n")
    (tmp_path / "cuda/lib64/libcudart_static.a").unlink()
    assert run_setup(tmp_path, CUDA_HOME=home).stdout.endswith("found None\n"), "without the runtime it is no use"


def test_the_module_imports_without_a_driver() -> None:
    try:
        from moelens import _cuda
    except ImportError:
        pytest.skip("moelens was built without a CUDA toolkit")
    count, reason = _cuda.count_devices()
    assert (count > 0) == torch.cuda.is_available() or not torch.cuda._is_compiled()
    assert count > 0 or "driver" in reason or "device" in reason


def test_a_module_that_is_missing_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "moelens._cuda", None)
    monkeypatch.delattr("moelens._cuda", raising=False)
    with pytest.raises(KernelError, match="MOELENS_CUDA=1 pip install"):
        cuda.load_kernels()


def test_the_emulation_is_no_device(emulated_kernels: ModuleType) -> None:
    assert emulated_kernels.count_devices()[0] == 0
    assert not list((ROOT / "moelens").glob("_cuda_emu*")), "it must not lie in the package"


def recorded_kernels() -> set[str]:
    return {re.split("[<]", usage.kernel)[0] for usage in read_record()[1]}


def test_every_kernel_and_architecture_is_on_record() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "csrc/cuda").glob("*.cuh"))
    kernels = set(re.findall(r"__global__ void (?:__launch_bounds__\([^{]*?\) )?(\w+_kernel)\(", sources))
    assert len(kernels) >= 10
    assert recorded_kernels() == kernels
    _, usages = read_record()
    for kernel in {usage.kernel for usage in usages}:
        assert [usage.arch for usage in usages if usage.kernel == kernel] == ARCHS


def products(usages: list[Usage]) -> list[Usage]:
    return [usage for usage in usages if usage.kernel.startswith(("gate_up_", "down_", "linear_"))]


def test_products_do_not_spill() -> None:
    for usage in products(read_record()[1]):
        assert usage.spilled_bytes == 0 and usage.registers <= 128, usage


def test_the_latest_build_is_as_recorded() -> None:
    built = read_reports(sorted((ROOT / "build").glob(BUILDS)))
    release = compiler_of_build()
    if not built or release is None:
        pytest.skip("moelens was built without a CUDA toolkit")
    assert all(usage.spilled_bytes == 0 for usage in products(built))
    recorded_release, recorded = read_record()
    if release != recorded_release:
        pytest.skip(f"built by nvcc {release}, recorded with {recorded_release}")
    assert set(built) <= set(recorded), "write it anew: python bench/cuda_registers.py --write"
