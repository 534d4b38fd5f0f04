"""From a checkpoint's folder to weights in memory, each byte read once, straight to where it belongs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from moelens.checkpoint.check import check_tensors
from moelens.checkpoint.file_reader import FileReader
from moelens.checkpoint.index import find_tensors
from moelens.checkpoint.jobs import Job, cut, run
from moelens.checkpoint.reading import WeightReader, affordable_threads
from moelens.checkpoint.safetensors import StoredTensor
from moelens.memory.weights import WeightStore, allocate
from moelens.models.architecture import Architecture
from moelens.ops.interface import Ops


def load_weights(
    folder: Path,
    architecture: Architecture,
    ops: Ops,
    *,
    threads: int,
    progress: Callable[[int], None] | None = None,
    disk_layers: Sequence[int] = (),
    disk_ring_layers: int = 2,
) -> WeightStore:
    """The weights of `architecture` from the .safetensors files of `folder`, read in `threads` threads.

    The blocks of `disk_layers` stay there; the store reads them when it is asked to. `progress` is called with bytes
    just done, which sum up to `weight_bytes(architecture, disk_layers)`. Raises CheckpointError or
    UnsupportedModelError when the files do not hold this model, CapacityError when it does not fit in memory; all that
    headers tell is checked before any weight is read.
    """
    tensors = find_tensors(folder)
    check_tensors(folder, tensors, architecture)
    store = allocate(architecture, ops, disk_layers=disk_layers, disk_ring_layers=disk_ring_layers)
    fill(store, tensors, architecture, ops, threads=threads, progress=progress)
    if disk_layers:
        store.read_from(FileReader(store, tensors, architecture, ops, threads=threads))
    return store


def fill(
    store: WeightStore,
    tensors: dict[str, StoredTensor],
    architecture: Architecture,
    ops: Ops,
    *,
    threads: int,
    progress: Callable[[int], None] | None,
) -> None:
    """Read `tensors`, which are checked, into all of `store`; see `load_weights`."""
    jobs = sorted(cut(architecture, store, ops), key=lambda job: _position(job, tensors))
    dtype = architecture.config.dtype
    scratch_elements = max((job.elements for job in jobs if job.target is None), default=0)
    used = {span.name: tensors[span.name] for job in jobs for span in job.spans}
    with WeightReader(used, dtype, scratch_elements) as reader:
        affordable = affordable_threads(store.nbytes, scratch_elements * dtype.itemsize)
        run(jobs, reader.work, threads=min(threads, affordable), progress=progress)


def _position(job: Job, tensors: dict[str, StoredTensor]) -> tuple[Path, int]:
    """Where the job begins to read: in this order the threads go through each file once, from begin to end."""
    span = job.spans[0]
    tensor = tensors[span.name]
    return tensor.path, tensor.begin + span.begin * span.columns
