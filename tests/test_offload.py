"""Putting a device together: the threads that are left for the host, and a GPU that is not there."""

from __future__ import annotations

import pytest
import torch

from moelens.devices import CpuDevice, CudaDevice, EmulatedDevice
from moelens.errors import ConfigError
from moelens.offload import check_device, host_threads
from moelens.ops.native import schedulable_cores


def test_a_gpu_that_is_not_there_is_told() -> None:
    check_device(CpuDevice())
    check_device(EmulatedDevice(1, 1.0))
    found = torch.cuda.device_count()
    with pytest.raises(ConfigError, match=rf"device='cuda:{found}' can't be used: torch .* finds {found} GPUs"):
        check_device(CudaDevice(found))


def test_an_emulated_devices_threads_are_not_the_hosts() -> None:
    assert host_threads(CpuDevice(), None) is None
    assert host_threads(EmulatedDevice(1, 1.0, threads=1), None) == max(1, schedulable_cores() - 1)
    assert host_threads(EmulatedDevice(1, 1.0, threads=1000), None) == 1
    assert host_threads(EmulatedDevice(1, 1.0, threads=1), 5) == 5
