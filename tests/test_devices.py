"""The argument `device`: what it may say, and what is said of anything else."""

from __future__ import annotations

import pytest

from moelens.devices import CpuDevice, CudaDevice, EmulatedDevice, parse_device
from moelens.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("auto", CpuDevice()),
        ("cpu", CpuDevice()),
        ("cuda", CudaDevice(0)),
        ("cuda:3", CudaDevice(3)),
        ("emulated:link=4GB/s,memory=600MB", EmulatedDevice(600_000_000, 4e9, 1)),
        ("emulated:memory=1GiB,threads=2,link=1.5GiB/s", EmulatedDevice(1 << 30, 1.5 * (1 << 30), 2)),
    ],
)
def test_devices(text: str, device: object) -> None:
    assert parse_device(text) == device


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tpu", "device='tpu' is not supported. Use 'auto', 'cpu', "),
        ("cuda:x", "is not supported"),
        (0, "must be a str, got 0"),
        ("emulated", "lacks link and memory. Write e.g. 'emulated:link=4GB/s,memory=600MB'"),
        ("emulated:link=4GB/s", "lacks memory"),
        ("emulated:link=4GB/s,memory=1GB,memory=2GB", "'memory=2GB' should be .* each once"),
        ("emulated:speed=4GB/s,memory=1GB", "'speed=4GB/s' should be link"),
        ("emulated:link=4GB,memory=1GB", "link must be bytes per second such as 4GB/s, got '4GB'"),
        ("emulated:link=fast/s,memory=1GB", "'fast' is not a size in bytes"),
        ("emulated:link=4GB/s,memory=0", "'0' is not a size in bytes"),
        ("emulated:link=4GB/s,memory=1GB,threads=0", "threads must be a whole number of at least 1, got '0'"),
    ],
)
def test_what_is_no_device_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_device(text)
