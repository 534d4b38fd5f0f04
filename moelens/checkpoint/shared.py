"""Weights that several processes share: packed once into a file, which each of them maps.

The file holds the arena's bytes, then a record (JSON) of what they are, its length in 8 bytes, and 8 bytes that are
written last. It is made under another name and renamed when the disk holds all of it, so whoever finds it finds it
whole; one that was cut off or damaged all the same is noticed and made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from moelens.checkpoint.check import check_tensors
from moelens.checkpoint.identity import weight_files
from moelens.checkpoint.index import find_tensors
from moelens.checkpoint.jobs import weight_bytes
from moelens.checkpoint.load import fill
from moelens.errors import CapacityError, ConfigError
from moelens.memory.arena import Arena
from moelens.memory.weights import WeightStore, allocate
from moelens.models.architecture import Architecture
from moelens.ops.interface import Ops

logger = logging.getLogger(__name__)

_WHOLE = b"MOELENS1"
_TAIL_BYTES = 8 + len(_WHOLE)
_MAX_RECORD_BYTES = 64 << 20
_PAGE_BYTES = 4096
_CHUNK_BYTES = 64 << 20  # touched between two reports of progress

Progress = Callable[[int], None]


def shared_weights(
    folder: Path,
    cache: Path,
    architecture: Architecture,
    ops: Ops,
    *,
    threads: int,
    progress: Progress | None = None,
) -> WeightStore:
    """The weights of `architecture` from a file in the folder `cache` that all processes map, made if it is not there.

    The file is that of this checkpoint (its files' names, sizes, times and headers), dtype and storage order. While one
    process makes it, others wait. Raises what `load_weights` raises, ConfigError when the folder can't be written, and
    CapacityError when it has no room.
    """
    record = _record(folder, architecture, ops)
    path = _path(folder, cache, record)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            if not _is_whole(path, record):
                _make(path, record, folder, architecture, ops, threads, progress)
                progress = None  # which is told of everything already
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(
            f"shared_weights_dir={str(cache)!r} can't be used: {error.strerror} ({error.filename or path.name}). Give "
            "a folder of a local disk that this process may write."
        ) from error
    try:
        store = allocate(architecture, ops, lambda nbytes: Arena.of_file(file, nbytes, writing=False))
    finally:
        os.close(file)  # the mapping stays
    _touch(store.arena, weight_bytes(architecture), progress)
    return store


def _record(folder: Path, architecture: Architecture, ops: Ops) -> dict[str, Any]:
    """All that the bytes depend on."""
    dtype = architecture.config.dtype
    specs = (architecture.resident_tensors, *architecture.layer_tensors)
    return {
        "checkpoint": str(folder.resolve()),
        "files": weight_files(folder),
        "dtype": str(dtype),
        "quantization": repr(architecture.config.quantization),
        "tensors": hashlib.sha256(repr(specs).encode()).hexdigest(),
        "packing": [_packing(ops, dtype, kept) for kept in _kept_dtypes(architecture)],
    }


def _kept_dtypes(architecture: Architecture) -> list[torch.dtype]:
    """What the packed tensors are kept in: the model's dtype first, then others."""
    specs = (spec for layer in architecture.layer_tensors for spec in layer)
    others = {spec.dtype for spec in specs if spec.dtype is not None}
    return [architecture.config.dtype, *sorted(others, key=str)]


def _packing(ops: Ops, dtype: torch.dtype, kept: torch.dtype) -> str:
    """A hash of the storage order of `ops`, whatever processor and version it is of: that of packed numbers."""
    rows, columns = 67, 131  # no multiples of anything
    numbers = torch.arange(rows * columns).remainder(251).to(dtype).view(rows, columns)
    shapes = (
        ops.matrix_shape(rows, columns, kept),
        ops.gate_up_shape(rows, columns, kept),
        ops.down_shape(rows, columns, kept),
    )
    storages = [torch.zeros(shape, dtype=kept) for shape in shapes]
    ops.pack_matrix(numbers, storages[0])
    ops.pack_gate_up(numbers, numbers + 1, storages[1])
    ops.pack_down(numbers, storages[2])
    digest = hashlib.sha256(repr(shapes).encode())
    for storage in storages:
        digest.update(storage.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _path(folder: Path, cache: Path, record: dict[str, Any]) -> Path:
    """A name for what doesn't change when the checkpoint's files do, so that its new weights replace the old ones."""
    lasting = [record[name] for name in ("checkpoint", "dtype", "quantization", "packing")]
    return cache / f"{folder.resolve().name}-{hashlib.sha256(repr(lasting).encode()).hexdigest()[:12]}.weights"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock `path`, which goes with the process."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("Waiting for another process that packs the weights …")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _is_whole(path: Path, record: dict[str, Any]) -> bool:
    """Whether the file is there, complete, undamaged where it is looked at, and of this record."""
    if not path.exists():
        return False
    found = _read_record(path)
    if found is None:
        logger.warning("%s is damaged or was cut off: packing the weights again.", path)
        return False
    if found["of"] != record:
        logger.info("%s is of another state of the checkpoint: packing the weights again.", path)
        return False
    return True


def _read_record(path: Path) -> dict[str, Any] | None:
    """The record at the file's end, None when the file is not as it was made."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        tail = os.pread(file.fileno(), _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        length = int.from_bytes(tail[:8], "little")
        begin = size - _TAIL_BYTES - length
        if tail[8:] != _WHOLE or length > _MAX_RECORD_BYTES or begin < 0:
            return None
        try:
            record = json.loads(os.pread(file.fileno(), length, begin))
            offsets = [offset for offset, _ in record["samples"]]
            samples = [list(one) for one in _checksums(file.fileno(), offsets)]
            as_made = "of" in record and record["bytes"] == begin and record["samples"] == samples
        except (ValueError, KeyError, TypeError):
            return None
        return record if as_made else None


def _make(
    path: Path,
    record: dict[str, Any],
    folder: Path,
    architecture: Architecture,
    ops: Ops,
    threads: int,
    progress: Progress | None,
) -> None:
    """Pack the weights into a file beside `path`, and rename it when the disk holds it."""
    tensors = find_tensors(folder)
    check_tensors(folder, tensors, architecture)
    partial = path.with_suffix(".partial")
    file = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        store = allocate(architecture, ops, lambda nbytes: _room(file, nbytes, partial))
        fill(store, tensors, architecture, ops, threads=threads, progress=progress)
        store.arena.flush()
        content = json.dumps({"of": record, "bytes": store.nbytes, "samples": _samples(file, store)}).encode()
        os.pwrite(file, content + len(content).to_bytes(8, "little"), store.nbytes)
        os.fsync(file)
        os.pwrite(file, _WHOLE, store.nbytes + len(content) + 8)
        os.fsync(file)
        partial.rename(path)
    except BaseException:
        partial.unlink()
        raise
    finally:
        os.close(file)


def _room(file: int, nbytes: int, path: Path) -> Arena:
    """The file's first bytes, which the disk has room for: a mapping that it has none for would kill the process."""
    try:
        os.posix_fallocate(file, 0, nbytes)
    except OSError as error:
        raise CapacityError(
            f"The packed weights, {nbytes / 1e9:.2f} GB, can't be written to {str(path.parent)!r}: {error.strerror}. "
            "Make room there, give another shared_weights_dir, or leave it out."
        ) from error
    return Arena.of_file(file, nbytes, writing=True)


def _samples(file: int, store: WeightStore) -> list[tuple[int, int]]:
    """Checksums of each slab's first and last page: (offset, CRC-32)."""
    offsets = [max(0, end - _PAGE_BYTES) for slab in store.slabs for end in (slab.begin + _PAGE_BYTES, slab.end)]
    return _checksums(file, offsets)


def _checksums(file: int, offsets: Sequence[int]) -> list[tuple[int, int]]:
    return [(offset, zlib.crc32(os.pread(file, _PAGE_BYTES, offset))) for offset in offsets]


def _touch(arena: Arena, total: int, progress: Progress | None) -> None:
    """Read something of every page, so that no step waits for the disk; `progress` is told of `total` bytes in all."""
    for begin in range(0, arena.nbytes, _CHUNK_BYTES):
        nbytes = min(_CHUNK_BYTES, arena.nbytes - begin)
        arena.view(begin, torch.uint8, (nbytes,))[::_PAGE_BYTES].max()
        if progress is not None:
            done = min(begin + nbytes, total) - min(begin, total)
            progress(done)
