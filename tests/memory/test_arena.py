"""The arena: zeros, exact size, aligned views that keep it alive, and a clear refusal."""

import gc

import pytest
import torch

from moelens.errors import CapacityError
from moelens.memory.arena import Arena, align
from moelens.memory.available import available_bytes


def test_view_is_zero_aligned_and_shared():
    arena = Arena(4096 + 64)
    first = arena.view(64, torch.float32, (3, 5))
    assert first.shape == (3, 5) and first.is_contiguous() and not first.any()
    assert first.data_ptr() % 64 == 0
    first.fill_(1.0)
    again = arena.view(64, torch.float32, (15,))
    assert torch.equal(again, torch.ones(15))
    assert not arena.view(128, torch.uint8, (4032,)).any()  # nothing beside it was written
    assert arena.nbytes == 4160


def test_last_byte_belongs_to_the_arena_and_the_next_does_not():
    arena = Arena(100)
    assert arena.view(64, torch.uint8, (36,)).shape == (36,)
    with pytest.raises(AssertionError):
        arena.view(64, torch.uint8, (37,))
    with pytest.raises(AssertionError):
        arena.view(32, torch.uint8, (1,))


def test_empty_views_and_an_empty_arena():
    assert Arena(0).view(0, torch.bfloat16, (0, 7)).shape == (0, 7)


def test_views_keep_the_memory_alive():
    view = Arena(1 << 20).view(0, torch.bfloat16, (1 << 19,))
    gc.collect()
    view.fill_(2.0)
    assert view.sum(dtype=torch.float32) == 2.0 * (1 << 19)


@pytest.mark.parametrize("nbytes", [1 << 60, 1 << 70])
def test_more_than_there_is_names_both_amounts(nbytes):
    with pytest.raises(CapacityError, match=rf"\({nbytes} bytes\) of memory for the cache .*GB is available.*End"):
        Arena(nbytes, purpose="the cache")


def test_a_refusal_of_the_system_is_a_capacity_error(monkeypatch):
    monkeypatch.setattr("moelens.memory.arena.available_bytes", lambda: None)
    with pytest.raises(CapacityError, match="the system refuses it"):
        Arena(1 << 62)


def test_align():
    assert [align(n, 64) for n in (0, 1, 64, 65)] == [0, 64, 64, 128]


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    5000 kB\n"}


def test_available_is_the_machines_without_groups(tmp_path):
    write(tmp_path, MEMINFO)
    assert available_bytes(tmp_path) == 5000 * 1024


def test_available_is_unknown_without_proc(tmp_path):
    assert available_bytes(tmp_path) is None


def test_a_version_2_group_above_limits_and_its_page_cache_does_not_count(tmp_path):
    group = "sys/fs/cgroup/a"
    write(
        tmp_path,
        MEMINFO
        | {
            "proc/self/cgroup": "0::/a/b\n",
            f"{group}/b/memory.max": "max\n",
            f"{group}/b/memory.current": "700\n",
            f"{group}/memory.max": "1000\n",
            f"{group}/memory.current": "800\n",
            f"{group}/memory.stat": "anon 500\ninactive_file 200\nactive_file 100\n",
        },
    )
    assert available_bytes(tmp_path) == 1000 - (800 - 300)


def test_a_version_1_group_limits(tmp_path):
    group = "sys/fs/cgroup/memory/a"
    write(
        tmp_path,
        MEMINFO
        | {
            "proc/self/cgroup": "5:cpu:/a\n4:memory:/a\n",
            f"{group}/memory.limit_in_bytes": "1000\n",
            f"{group}/memory.usage_in_bytes": "1200\n",
            f"{group}/memory.stat": "inactive_file 1\ntotal_inactive_file 50\ntotal_active_file 50\n",
        },
    )
    assert available_bytes(tmp_path) == 0
