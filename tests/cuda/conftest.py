"""The kernels' tests run under emulation, and with -m gpu on the GPU: the same assertions."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from emulation import load_emulated_kernels
from target import Target


@pytest.fixture(scope="session")
def emulated_kernels() -> ModuleType:
    return load_emulated_kernels()


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    if request.param == "gpu":
        ops = Target(torch.device("cuda"), None, fenced=True)
    else:
        kernels = request.getfixturevalue("emulated_kernels")
        ops = Target(torch.device("cpu"), kernels, fenced="sanitize" not in str(kernels.__file__))
        ops.shuffle(1)
    yield ops
    ops.check_fences()
