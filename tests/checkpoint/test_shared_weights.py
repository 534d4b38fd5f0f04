"""Weights that processes share: the same bytes as loaded ones, made once, noticed when they are torn or outdated."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from tiny_checkpoint import PanelOps, assert_stored, save, tensors_for, tiny_architecture

from moelens.checkpoint import shared
from moelens.checkpoint.jobs import weight_bytes
from moelens.checkpoint.shared import shared_weights
from moelens.errors import CapacityError, CheckpointError, ConfigError
from moelens.models.config import Quantization
from moelens.models.quantization import quantize
from moelens.ops.native import NativeOps


class Checkpoint:
    def __init__(self, path: Path) -> None:
        self.folder, self.cache = path / "model", path / "cache"
        self.folder.mkdir()
        self.architecture = tiny_architecture()
        self.packed = 0
        self.write(0)

    def write(self, seed: int) -> None:
        self.tensors = tensors_for(self.architecture, seed=seed)
        save(self.folder / "model.safetensors", self.tensors)

    def open(self, ops=None, progress=None, **options):
        return shared_weights(
            self.folder, self.cache, self.architecture, ops or PanelOps(), threads=2, progress=progress, **options
        )

    def assert_right(self, store) -> None:
        assert_stored(store, self.architecture, self.tensors)

    @property
    def file(self) -> Path:
        (found,) = self.cache.glob("*.weights")
        return found


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    made = Checkpoint(tmp_path)
    fill = shared.fill

    def counted(*args, **options):
        made.packed += 1
        fill(*args, **options)

    monkeypatch.setattr(shared, "fill", counted)
    return made


def test_they_are_packed_once_and_mapped_by_all(checkpoint: Checkpoint) -> None:
    made, found = [], []
    stores = [checkpoint.open(progress=made.append), checkpoint.open(progress=found.append)]
    for store in stores:
        checkpoint.assert_right(store)
    assert checkpoint.packed == 1
    assert sum(made) == sum(found) == weight_bytes(checkpoint.architecture)
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(".weights")]
    assert len(mapped) == 2 and all(" rw-p " in line for line in mapped), "the file itself can't be changed by it"
    stores[0].resident.plain["embedding"].zero_()
    checkpoint.assert_right(stores[1])
    checkpoint.assert_right(checkpoint.open())


def test_memory_holds_one_copy(checkpoint: Checkpoint) -> None:
    """As the kernel counts it: pages of both mappings, none of its own, each shared."""
    stores = [checkpoint.open(), checkpoint.open()]
    counts = []
    lines = Path("/proc/self/smaps").read_text().splitlines()
    for number, line in enumerate(lines):
        if line.endswith(".weights"):
            entry = dict(field.split(":")[0:2] for field in lines[number + 1 : number + 24])
            counts.append({name: int(value.split()[0]) for name, value in entry.items() if value.endswith(" kB")})
    assert len(counts) == 2
    for count in counts:
        assert count["Rss"] * 1024 >= stores[0].nbytes // 4096 * 4096 and count["Private_Dirty"] == 0
    assert sum(count["Pss"] for count in counts) <= counts[0]["Rss"] + 1


def test_another_checkpoint_takes_the_place_of_the_old_one(checkpoint: Checkpoint) -> None:
    before = checkpoint.open()
    old = checkpoint.tensors
    checkpoint.write(1)
    checkpoint.assert_right(checkpoint.open())
    assert checkpoint.packed == 2 and checkpoint.file.exists()
    assert_stored(before, checkpoint.architecture, old)


def test_other_storage_orders_and_dtypes_have_files_of_their_own(checkpoint: Checkpoint) -> None:
    class Mirrored(PanelOps):
        """The same shapes, other places."""

        def pack_matrix(self, source, storage, first_row=0):
            super().pack_matrix(source.flip(1), storage, first_row)

    checkpoint.open()
    checkpoint.open(Mirrored())
    checkpoint.architecture = tiny_architecture(torch.float32)
    checkpoint.assert_right(checkpoint.open())
    assert checkpoint.packed == 3 and len(list(checkpoint.cache.glob("*.weights"))) == 3


@pytest.mark.parametrize("kept", [0, 100, 5000, -1, -30])
def test_a_file_that_was_cut_off_is_made_again(
    checkpoint: Checkpoint, kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint.open()
    content = checkpoint.file.read_bytes()
    checkpoint.file.write_bytes(content[:kept])
    checkpoint.assert_right(checkpoint.open())
    assert "is damaged or was cut off: packing the weights again" in caplog.text
    assert checkpoint.file.read_bytes() == content


def test_pages_that_were_lost_are_noticed(checkpoint: Checkpoint) -> None:
    checkpoint.open()
    content = bytearray(checkpoint.file.read_bytes())
    content[:4096] = bytes(4096)
    checkpoint.file.write_bytes(content)
    checkpoint.assert_right(checkpoint.open())
    assert checkpoint.packed == 2


def test_a_checkpoint_that_fails_leaves_nothing(checkpoint: Checkpoint) -> None:
    checkpoint.tensors["layers.0.norm.weight"][3] = float("nan")
    save(checkpoint.folder / "model.safetensors", checkpoint.tensors)
    with pytest.raises(CheckpointError, match="finite numbers"):
        checkpoint.open()
    assert [path.suffix for path in checkpoint.cache.iterdir()] == [".lock"]


def test_what_a_killed_process_left_is_no_hindrance(checkpoint: Checkpoint) -> None:
    checkpoint.open()
    checkpoint.file.rename(checkpoint.file.with_suffix(".partial"))
    checkpoint.assert_right(checkpoint.open())
    assert sorted(path.suffix for path in checkpoint.cache.iterdir()) == [".lock", ".weights"]


def test_a_second_process_waits_for_the_first(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads stand for processes: each opens the lock's file anew."""
    counted, begun = shared.fill, threading.Event()

    def slow(*args, **options):
        begun.set()
        time.sleep(0.2)
        counted(*args, **options)

    monkeypatch.setattr(shared, "fill", slow)
    stores = []
    threads = [threading.Thread(target=lambda: stores.append(checkpoint.open())) for _ in range(3)]
    threads[0].start()
    assert begun.wait(10)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    assert checkpoint.packed == 1 and len(stores) == 3
    for store in stores:
        checkpoint.assert_right(store)


def test_a_full_disk_is_said_before_anything_is_written(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CapacityError, match=r"can't be written to .*No space left on device"):
        checkpoint.open()
    assert not list(checkpoint.cache.glob("*.partial"))


def test_a_folder_that_cannot_be(checkpoint: Checkpoint) -> None:
    checkpoint.cache.write_text("a file")
    with pytest.raises(ConfigError, match=r"shared_weights_dir=.* can't be used"):
        checkpoint.open()


def test_weights_as_they_are_and_quantised_ones_lie_apart(checkpoint: Checkpoint) -> None:
    """Each has a file of its own, so that neither is packed again for the other."""
    plain = checkpoint.open(NativeOps(1))
    as_it_is = checkpoint.architecture
    for _ in range(2):
        checkpoint.architecture = quantize(as_it_is, Quantization.INT8)
        quantized = checkpoint.open(NativeOps(1))
        checkpoint.architecture = as_it_is
        again = checkpoint.open(NativeOps(1))
    assert checkpoint.packed == 2
    assert len(list(checkpoint.cache.glob("*.weights"))) == 2
    assert quantized.layer(0).matrix["qkv"].data.dtype == torch.int8
    assert torch.equal(again.layer(0).matrix["qkv"].data, plain.layer(0).matrix["qkv"].data)
