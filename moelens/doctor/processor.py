"""The processor: its name, cores, sockets, clock, and the instruction set that the kernels use."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from moelens.doctor.finding import Finding, read_text

_SHOWN_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_bf16", "amx_tile", "amx_bf16")
_REBUILD = "build the kernels with a C++17 compiler: pip install -e . (see CONTRIBUTING.md)"


def processor_findings(root: Path) -> Iterator[Finding]:
    """What /proc and /sys below `root` tell."""
    cpuinfo = read_text(root / "proc/cpuinfo")
    yield Finding("processor", _first(cpuinfo, "model name") or os.uname().machine)
    flags = (_first(cpuinfo, "flags") or "").split()
    yield Finding("instruction flags", " ".join(flag for flag in _SHOWN_FLAGS if flag in flags) or "none of note")
    yield _cores(root, cpuinfo)
    yield from _numa(root)
    yield from _governor(root)


def isa_findings() -> Iterator[Finding]:
    """Which instruction set the kernels use, and why."""
    try:
        from moelens import _cpu
        from moelens.ops.native import choose_isa
    except ImportError as error:
        yield Finding("kernels", "missing", f"moelens._cpu can't be loaded: {error}", _REBUILD)
        return
    except Exception as error:  # KernelError, which says it itself
        yield Finding("kernels", "missing", str(error), _REBUILD)
        return
    best, available = _cpu.best_isa(), ", ".join(_cpu.available_isas())
    try:
        chosen = choose_isa(None)
    except Exception as error:
        yield Finding("instruction set", "none", str(error), "unset MOELENS_CPU_ISA")
        return
    if chosen != best:
        problem = f"MOELENS_CPU_ISA asks for {chosen}, but {best} would be faster"
        yield Finding("instruction set", chosen, problem, "unset MOELENS_CPU_ISA, unless results must be as elsewhere")
    elif chosen == "scalar":
        yield Finding("instruction set", chosen, "the processor offers no AVX2", "use a processor with AVX2 or newer")
    else:
        why = f"the best of what the processor and the system offer ({available})"
        yield Finding("instruction set", f"{chosen}: {why}")


def _cores(root: Path, cpuinfo: str) -> Finding:
    total = len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE)) or os.cpu_count() or 1
    sockets = len(set(re.findall(r"^physical id\s*:\s*(\d+)$", cpuinfo, re.MULTILINE))) or 1
    usable = len(os.sched_getaffinity(0))
    value = f"{usable} usable of {total} logical, {sockets} socket{'s' * (sockets > 1)}"
    quota = _quota(root)
    if quota is not None:
        value += f", quota {quota:g}"
        if quota < usable:
            problem = f"the control group allows {quota:g} cores' time, though {usable} are visible"
            return Finding("cores", value, problem, "raise the container's CPU limit")
    if usable < total:
        problem = f"this process may use {usable} of {total}"
        return Finding("cores", value, problem, "lift taskset, numactl or the container's cpuset, if you can")
    return Finding("cores", value)


def _quota(root: Path) -> float | None:
    """Cores' worth of time that the control group allows."""
    match = re.fullmatch(r"(\d+) (\d+)", read_text(root / "sys/fs/cgroup/cpu.max"))
    return int(match[1]) / int(match[2]) if match else None


def _numa(root: Path) -> Iterator[Finding]:
    nodes = sorted((root / "sys/devices/system/node").glob("node[0-9]*"), key=lambda path: int(path.name[4:]))
    if not nodes:
        yield Finding("NUMA", "not told by the system")
        return
    described = [f"{node.name}: cpus {read_text(node / 'cpulist') or '-'}" for node in nodes]
    if len(nodes) == 1:
        yield Finding("NUMA", f"one node ({described[0]})")
        return
    problem = "memory lies on several nodes, and a far one is slower"
    yield Finding("NUMA", "; ".join(described), problem, "start with: numactl --interleave=all python …")


def _governor(root: Path) -> Iterator[Finding]:
    governor = read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor == "powersave" and "intel_pstate" not in read_text(
        root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver"
    ):
        problem = "the clock is kept low"
        yield Finding("clock governor", governor, problem, "sudo cpupower frequency-set -g performance")
    elif governor:
        yield Finding("clock governor", governor)


def _first(cpuinfo: str, name: str) -> str | None:
    match = re.search(rf"^{name}\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return match[1] if match else None
