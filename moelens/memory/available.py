"""How much memory this process may still take: what the machine has left, and what its control groups allow."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path("/")


def available_bytes(root: Path = _ROOT) -> int | None:
    """The least of the machine's available memory and every control group's remainder; None where neither is told.

    `root` is where /proc and /sys are found.
    """
    known = [n for n in (_machine_bytes(root), *_group_bytes(root)) if n is not None]
    return min(known, default=None)


def _machine_bytes(root: Path) -> int | None:
    """MemAvailable of /proc/meminfo."""
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _group_bytes(root: Path) -> list[int | None]:
    """What each memory control group of this process (version 1 or 2), and each group above it, has left."""
    remainders: list[int | None] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, limit, used = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            mount, limit, used = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        inside = Path(path.lstrip("/"))
        for group in (inside, *inside.parents):
            remainders.append(_remainder(mount / group, limit, used))
    return remainders


def _remainder(group: Path, limit_name: str, used_name: str) -> int | None:
    """Limit less use, where the page cache does not count as use: the kernel takes it back on demand."""
    limit, used = _read(group / limit_name).strip(), _read(group / used_name).strip()
    if not limit.isdigit() or not used.isdigit():  # the group is not visible here, or its limit is "max"
        return None
    stat = dict(line.split() for line in _read(group / "memory.stat").splitlines() if len(line.split()) == 2)
    prefix = "total_" if "total_inactive_file" in stat else ""
    cache = sum(int(stat.get(prefix + name, "0")) for name in ("inactive_file", "active_file"))
    return max(0, int(limit) - max(0, int(used) - cache))


def _read(path: Path) -> str:
    """The file's text, or nothing where there is no such file to read."""
    try:
        return path.read_text()
    except OSError:
        return ""
