"""A model's weights cut into jobs: which rows of the checkpoint are read together, and where they are packed.

A job takes a few megabytes, so that what a thread reads is still in its cache when it packs it; an expert's matrices,
which the ops pack whole, are one job each whatever their size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial

import torch

from moelens.memory.layout import is_block
from moelens.memory.weights import WeightStore
from moelens.models.architecture import Architecture, Form, Piece, TensorSpec
from moelens.ops.interface import Ops

_JOB_BYTES = 2 << 20
_ROW_STEP = 32  # what `Ops.pack_matrix` wants first rows to be a multiple of


@dataclass(frozen=True)
class Span:
    """Rows [begin, end) of the checkpoint tensor `name`, `columns` elements each."""

    name: str
    begin: int
    end: int
    columns: int

    @property
    def elements(self) -> int:
        return (self.end - self.begin) * self.columns


@dataclass(frozen=True)
class Job:
    """The elements of `spans`, one after the other and in the model's dtype, go into `target`, or else to `pack`.

    `target` is flat storage that wants them as they are; `pack` takes a flat tensor and keeps nothing of it.
    """

    spans: tuple[Span, ...]
    target: torch.Tensor | None = None
    pack: Callable[[torch.Tensor], None] | None = None

    @property
    def elements(self) -> int:
        return sum(span.elements for span in self.spans)


def weight_bytes(architecture: Architecture, disk_layers: Collection[int] = ()) -> int:
    """Bytes of all weights but the blocks of `disk_layers`, in the model's dtype, without padding: the sum of what
    loading reports as progress."""
    specs = list(architecture.resident_tensors)
    for layer, tensors in enumerate(architecture.layer_tensors):
        specs += [spec for spec in tensors if layer not in disk_layers or not is_block(spec.name)]
    return sum(math.prod(spec.shape) for spec in specs) * architecture.config.dtype.itemsize


def cut(architecture: Architecture, store: WeightStore, ops: Ops) -> Iterator[Job]:
    """The jobs that fill all of `store` but what comes from files later, no two of which write the same bytes."""
    for spec, storage in zip(architecture.resident_tensors, store.storages(store.resident_slab), strict=True):
        yield from cut_tensor(spec, storage, ops)
    for layer, specs in enumerate(architecture.layer_tensors):
        for spec, storage in zip(specs, store.storages(store.slab(layer)), strict=True):
            if layer not in store.disk_layers or not is_block(spec.name):
                yield from cut_tensor(spec, storage, ops)


def cut_experts(architecture: Architecture, store: WeightStore, ops: Ops, layer: int) -> list[list[Job]]:
    """The jobs that fill the block of one layer, by expert."""
    specs, storages = architecture.layer_tensors[layer], store.storages(store.slab(layer))
    cuts = [
        list(cut_tensor(spec, storage, ops))
        for spec, storage in zip(specs, storages, strict=True)
        if is_block(spec.name)
    ]
    return [list(jobs) for jobs in zip(*cuts, strict=True)]  # each tensor of a block has a job for each expert


def cut_tensor(spec: TensorSpec, storage: torch.Tensor, ops: Ops) -> Iterator[Job]:
    """The jobs that fill the `storage` of one tensor."""
    if spec.form is Form.PLAIN:
        return _plain(spec, storage)
    if spec.form is Form.MATRIX:
        return _matrix(spec, storage, ops)
    if spec.form is Form.GATE_UP:
        return _gate_up(spec, storage, ops)
    return _down(spec, storage, ops)


def run(
    jobs: Iterable[Job], work: Callable[[Job], int], *, threads: int, progress: Callable[[int], None] | None
) -> None:
    """`work` on every job in `threads` threads; `progress` gets what it returns, in this thread.

    The first exception ends the run: jobs that wait are dropped, those that run are waited for.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="moelens-load") as pool:
        try:
            for done in as_completed([pool.submit(work, job) for job in jobs]):
                nbytes = done.result()
                if progress is not None:
                    progress(nbytes)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _span(piece: Piece) -> Span:
    """The rows of a piece; a vector's elements are its rows."""
    rows, columns = (piece.shape[0], 1) if len(piece.shape) == 1 else (math.prod(piece.shape[:-1]), piece.shape[-1])
    begin, end = piece.rows or (0, rows)
    assert 0 <= begin <= end <= rows, f"{piece} has {rows} rows"
    return Span(piece.name, begin, end, columns)


def _wanted(piece: Piece, flat: torch.Tensor) -> torch.Tensor:
    """The piece's elements as the matrix that is wanted; a view."""
    span = _span(piece)
    picked = flat.view(span.end - span.begin, span.columns)
    return picked.t() if piece.transposed else picked


def _plain(spec: TensorSpec, storage: torch.Tensor) -> Iterator[Job]:
    """Straight into the storage, in stretches of rows; a transposed piece is placed whole."""
    flat = storage.view(-1)
    spans = [_span(piece) for piece in spec.pieces]
    assert sum(span.elements for span in spans) == flat.numel(), f"{spec.name}: the pieces do not make up {spec.shape}"
    position = 0
    for piece, span in zip(spec.pieces, spans, strict=True):
        for part in [span] if piece.transposed else _stretches(span, storage.dtype.itemsize):
            target = flat[position : position + part.elements]
            position += part.elements
            if piece.transposed:
                yield Job((part,), pack=partial(_place_transposed, piece, target))
            else:
                yield Job((part,), target=target)


def _place_transposed(piece: Piece, target: torch.Tensor, flat: torch.Tensor) -> None:
    wanted = _wanted(piece, flat)
    target.view(wanted.shape).copy_(wanted)


def _matrix(spec: TensorSpec, storage: torch.Tensor, ops: Ops) -> Iterator[Job]:
    """Stretches of the joined rows, cut at multiples of 32; with a transposed piece, all rows at once."""
    rows, columns = spec.shape
    if any(piece.transposed for piece in spec.pieces):
        yield Job(tuple(map(_span, spec.pieces)), pack=partial(_pack_joined, spec, storage, ops))
        return
    spans = [_span(piece) for piece in spec.pieces]
    assert all(span.columns == columns for span in spans), f"{spec.name}: pieces of other widths than {columns}"
    assert sum(span.end - span.begin for span in spans) == rows, f"{spec.name}: the pieces do not make up {rows} rows"
    step = max(_ROW_STEP, _rows_per_job(columns, storage.dtype.itemsize) // _ROW_STEP * _ROW_STEP)
    for first in range(0, rows, step):
        picked = _pick(spans, first, min(rows, first + step))
        yield Job(picked, pack=partial(_pack_rows, columns, storage, ops, first))


def _pack_rows(columns: int, storage: torch.Tensor, ops: Ops, first: int, flat: torch.Tensor) -> None:
    ops.pack_matrix(flat.view(-1, columns), storage, first)


def _pack_joined(spec: TensorSpec, storage: torch.Tensor, ops: Ops, flat: torch.Tensor) -> None:
    parts: list[torch.Tensor] = []
    position = 0
    for piece in spec.pieces:
        end = position + _span(piece).elements
        parts.append(_wanted(piece, flat[position:end]))
        position = end
    joined = torch.cat(parts)
    assert joined.shape == spec.shape, f"{spec.name}: the pieces make up {tuple(joined.shape)}, not {spec.shape}"
    ops.pack_matrix(joined, storage)


def _gate_up(spec: TensorSpec, storage: torch.Tensor, ops: Ops) -> Iterator[Job]:
    """One job per expert: its gate, then its up."""
    experts, _, width, columns = spec.shape
    assert len(spec.pieces) == 2 * experts, f"{spec.name}: {len(spec.pieces)} pieces for {experts} experts"
    for expert in range(experts):
        gate, up = spec.pieces[2 * expert : 2 * expert + 2]
        spans = (_span(gate), _span(up))
        assert all(span.elements == width * columns for span in spans), f"{gate} and {up} are not {width} x {columns}"
        yield Job(spans, pack=partial(_pack_gate_up, gate, up, storage[expert], ops))


def _pack_gate_up(gate: Piece, up: Piece, storage: torch.Tensor, ops: Ops, flat: torch.Tensor) -> None:
    half = flat.numel() // 2
    ops.pack_gate_up(_wanted(gate, flat[:half]), _wanted(up, flat[half:]), storage)


def _down(spec: TensorSpec, storage: torch.Tensor, ops: Ops) -> Iterator[Job]:
    """One job per expert."""
    experts, rows, width = spec.shape
    assert len(spec.pieces) == experts, f"{spec.name}: {len(spec.pieces)} pieces for {experts} experts"
    for expert, piece in enumerate(spec.pieces):
        span = _span(piece)
        assert span.elements == rows * width, f"{piece} is not {rows} x {width}"
        yield Job((span,), pack=partial(_pack_down, piece, storage[expert], ops))


def _pack_down(piece: Piece, storage: torch.Tensor, ops: Ops, flat: torch.Tensor) -> None:
    ops.pack_down(_wanted(piece, flat), storage)


def _rows_per_job(columns: int, itemsize: int) -> int:
    return max(1, _JOB_BYTES // max(1, columns * itemsize))


def _stretches(span: Span, itemsize: int) -> Iterator[Span]:
    """`span` in stretches of about a job's size."""
    step = _rows_per_job(span.columns, itemsize)
    for begin in range(span.begin, span.end, step):
        yield Span(span.name, begin, min(span.end, begin + step), span.columns)


def _pick(spans: list[Span], first: int, last: int) -> tuple[Span, ...]:
    """Rows [first, last) of the joined `spans`."""
    picked: list[Span] = []
    position = 0
    for span in spans:
        begin = span.begin + max(0, first - position)
        end = min(span.end, span.begin + last - position)
        if begin < end:
            picked.append(Span(span.name, begin, end, span.columns))
        position += span.end - span.begin
    return tuple(picked)
