"""Memory: how much there is, huge pages, swap, and how much may be locked."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from pathlib import Path

from moelens.doctor.finding import Finding, read_text, size
from moelens.memory.available import available_bytes

_LEAST_BYTES = 4 << 30


def memory_findings(root: Path) -> Iterator[Finding]:
    """What /proc and /sys below `root` tell."""
    meminfo = read_text(root / "proc/meminfo")
    total, swap = _kib(meminfo, "MemTotal"), _kib(meminfo, "SwapTotal")
    if total is None:
        yield Finding("RAM", "not told by the system")
    else:
        yield _ram(root, total)
    if swap:
        yield Finding("swap", size(swap))
    yield _huge_pages(root)


def lock_finding(limit: int | None = None) -> Finding:
    """How much memory this process may lock; `limit` in bytes stands in for the system's own."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] if limit is None else limit
    unlimited = limit == resource.RLIM_INFINITY
    return Finding("lockable memory", "unlimited" if unlimited else f"{size(limit)} (nothing is locked without a GPU)")


def _ram(root: Path, total: int) -> Finding:
    available = available_bytes(root)
    if available is None:
        return Finding("RAM", size(total))
    value = f"{size(total)}, {size(available)} available to this process"
    if available < _LEAST_BYTES:
        problem = f"less than {size(_LEAST_BYTES)} is available"
        return Finding("RAM", value, problem, "end other programs, or raise the container's memory limit")
    return Finding("RAM", value)


def _huge_pages(root: Path) -> Finding:
    text = read_text(root / "sys/kernel/mm/transparent_hugepage/enabled")
    match = re.search(r"\[(\w+)\]", text)
    if match is None:
        return Finding("transparent huge pages", "not told by the system")
    if match[1] == "never":
        problem = "weights are read through many small pages, which costs speed"
        remedy = "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
        return Finding("transparent huge pages", match[1], problem, remedy)
    return Finding("transparent huge pages", match[1])


def _kib(meminfo: str, name: str) -> int | None:
    match = re.search(rf"^{name}:\s*(\d+) kB$", meminfo, re.MULTILINE)
    return int(match[1]) * 1024 if match else None
