"""Says where a measurement was made: the processor, its memory, and the versions of what ran."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path


def cpu_name() -> str:
    """The processor's name as Linux gives it."""
    match = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return match[1] if match else platform.processor() or platform.machine()


def cpu_cores() -> int:
    """Number of logical processors that this process may use."""
    return len(os.sched_getaffinity(0))


def memory_bytes() -> int:
    """Size of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_rss_bytes() -> int:
    """Most memory that this process has had resident so far (VmHWM)."""
    match = re.search(r"^VmHWM:\s*(\d+) kB$", _read("/proc/self/status"), re.MULTILINE)
    if match is None:  # a kernel that doesn't tell the peak
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(match[1]) * 1024


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter for speed and text."""
    packages = ("moelens", "torch", "transformers", "tokenizers", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
