"""The cores that are near a PCI device: copies that they start don't cross the machine."""

from __future__ import annotations

import os
from pathlib import Path

_ROOT = Path("/")


def near_cores(pci_address: str, root: Path = _ROOT) -> frozenset[int]:
    """Cores of the device's NUMA node, empty where the system does not tell; `pci_address` is like 0000:3b:00.0."""
    try:
        text = (root / "sys/bus/pci/devices" / pci_address / "local_cpulist").read_text().strip()
    except OSError:
        return frozenset()
    cores: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return frozenset(cores)


def bind_thread(cores: frozenset[int]) -> None:
    """Keep the calling thread on those of `cores` that the process may use, if there are any."""
    allowed = cores & os.sched_getaffinity(0)
    if allowed:
        os.sched_setaffinity(0, allowed)
