"""The rows of one step: which tokens of which requests, where their keys and values go, and which rows give logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from moelens.cost.workload import StepShape
from moelens.ops.interface import AttentionRows
from moelens.request import Request
from moelens.schedule.blocks import BlockTables
from moelens.schedule.prefix import BlockKeys

Int32Array = npt.NDArray[np.int32]


class Running:
    """A request that holds blocks: its row in the block tables and how many of its tokens are cached."""

    __slots__ = ("cached", "keys", "request", "row")

    def __init__(self, request: Request, row: int, keys: BlockKeys, cached: int) -> None:
        self.request = request
        self.row = row
        self.keys = keys
        self.cached = cached

    def block_keys(self, blocks: int) -> list[bytes]:
        """The keys of its first `blocks` blocks."""
        return self.keys.up_to(self.request.prompt_token_ids, self.request.output_token_ids, blocks)

    @property
    def pending(self) -> int:
        """Tokens that are known but not cached yet; 1 is a decode."""
        return self.request.num_tokens - self.cached


@dataclass(slots=True)
class Chunk:
    """`count` tokens of one running request, from its first uncached one on."""

    running: Running
    count: int

    @property
    def completes(self) -> bool:
        """Whether the request's next token can be picked after this chunk."""
        return self.count == self.running.pending

    @property
    def is_decode(self) -> bool:
        return self.count == 1 and self.running.cached > 0

    @property
    def is_resumed(self) -> bool:
        """Whether these are several tokens of which earlier ones are cached."""
        return self.count > 1 and self.running.cached > 0

    @property
    def is_fresh(self) -> bool:
        """Whether the rows see no keys but their own."""
        return self.running.cached == 0


class LogitRow(NamedTuple):
    """A row whose logits are wanted: to pick the request's next token, or for a prompt token's log-probability.

    `prompt_position` is the position of the prompt token that the row predicts, None for a row that picks.
    """

    request: Request
    row: int
    prompt_position: int | None = None


@dataclass(frozen=True)
class Batch:
    """A ragged batch of T rows of S chunks: decodes, then `resumed` prompts of which a beginning is cached, then
    prompts that begin; all tensors int32 on the host.

    token_ids [T], positions [T], slots [T] (where k and v go), attention: starts [S+1], cached [S], block_ids [S, ·].
    """

    chunks: tuple[Chunk, ...]
    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    attention: AttentionRows
    decodes: int
    resumed: int
    logit_rows: tuple[LogitRow, ...]
    shape: StepShape

    @property
    def rows(self) -> int:
        return self.shape.tokens


def make_batch(chunks: Sequence[Chunk], tables: BlockTables, block_tokens: int) -> Batch:
    """Lay out chunks as one batch, otherwise in the order given."""
    ordered = [c for c in chunks if c.is_decode]
    decodes = len(ordered)
    if decodes < len(chunks):
        ordered += [c for c in chunks if c.is_resumed]
    resumed = len(ordered) - decodes
    if decodes + resumed < len(chunks):
        ordered += [c for c in chunks if c.is_fresh]
    counts = np.array([c.count for c in ordered], dtype=np.int32)
    cached = np.array([c.running.cached for c in ordered], dtype=np.int32)
    starts, chunk_of_row, positions = _places(counts, cached)
    block_ids = tables.select([c.running.row for c in ordered])
    logit_rows = tuple(_logit_rows(ordered, starts.tolist()))
    blocks, offsets = np.divmod(positions, np.int32(block_tokens))
    slots = block_ids[chunk_of_row, blocks] * np.int32(block_tokens) + offsets
    return Batch(
        chunks=tuple(ordered),
        token_ids=torch.from_numpy(_token_ids(ordered, len(positions))),
        positions=torch.from_numpy(positions),
        slots=torch.from_numpy(slots),
        attention=AttentionRows(torch.from_numpy(starts), torch.from_numpy(cached), torch.from_numpy(block_ids)),
        decodes=decodes,
        resumed=resumed,
        logit_rows=logit_rows,
        shape=_shape(counts, cached, decodes, resumed, len(logit_rows)),
    )


def _places(counts: Int32Array, cached: Int32Array) -> tuple[Int32Array, Int32Array, Int32Array]:
    """Where each chunk's rows start [S+1], and each row's chunk and position [T]."""
    chunks = np.arange(len(counts) + 1, dtype=np.int32)
    if counts.max() == 1:  # a step of decodes
        return chunks, chunks[:-1], cached
    starts = np.zeros_like(chunks)
    np.cumsum(counts, out=starts[1:])
    chunk_of_row = np.repeat(chunks[:-1], counts)
    positions = np.arange(starts[-1], dtype=np.int32) - (starts[:-1] - cached)[chunk_of_row]
    return starts, chunk_of_row, positions


def select_rows(rows: AttentionRows, begin: int, end: int) -> AttentionRows:
    """The requests [begin, end) of `rows`, with starts counted from their first row."""
    starts = rows.starts[begin : end + 1]
    return AttentionRows(starts - starts[0], rows.cached[begin:end], rows.block_ids[begin:end])


def shape_of(chunks: Sequence[Chunk]) -> StepShape:
    """The shape of the batch that `make_batch` would lay out, when nobody asks for log-probabilities of prompts."""
    decode_tokens = decode_context = prefill_tokens = prefill_pairs = logit_rows = resumed_tokens = resumed_pairs = 0
    for chunk in chunks:
        count, cached = chunk.count, chunk.running.cached
        if count == 1 and cached > 0:
            decode_tokens += 1
            decode_context += cached + 1
        else:
            pairs = count * cached + count * (count + 1) // 2
            prefill_tokens += count
            prefill_pairs += pairs
            if cached > 0:
                resumed_tokens += count
                resumed_pairs += pairs
        logit_rows += chunk.completes
    return StepShape(
        decode_tokens, decode_context, prefill_tokens, prefill_pairs, logit_rows, resumed_tokens, resumed_pairs
    )


def _shape(counts: Int32Array, cached: Int32Array, decodes: int, resumed: int, logit_rows: int) -> StepShape:
    rows, context = counts.astype(np.int64), cached.astype(np.int64)
    pairs = rows * context + rows * (rows + 1) // 2
    again = slice(decodes, decodes + resumed)
    return StepShape(
        decode_tokens=decodes,
        decode_context=int(pairs[:decodes].sum()),
        prefill_tokens=int(rows[decodes:].sum()),
        prefill_pairs=int(pairs[decodes:].sum()),
        logit_rows=logit_rows,
        resumed_tokens=int(rows[again].sum()),
        resumed_pairs=int(pairs[again].sum()),
    )


def _token_ids(chunks: Sequence[Chunk], total: int) -> Int32Array:
    token_ids = np.empty(total, dtype=np.int32)
    row = 0
    for chunk in chunks:
        running, count = chunk.running, chunk.count
        request, begin = running.request, running.cached
        end, prompt = begin + count, len(request.prompt_token_ids)
        if count == 1 and begin >= prompt:
            token_ids[row] = request.output_token_ids[begin - prompt]
        elif begin >= prompt:
            token_ids[row : row + count] = request.output_token_ids[begin - prompt : end - prompt]
        elif end <= prompt:
            token_ids[row : row + count] = request.prompt_token_ids[begin:end]
        else:
            token_ids[row : row + prompt - begin] = request.prompt_token_ids[begin:]
            token_ids[row + prompt - begin : row + count] = request.output_token_ids[: end - prompt]
        row += count
    return token_ids


def _logit_rows(chunks: Sequence[Chunk], starts: Sequence[int]) -> list[LogitRow]:
    wanted: list[LogitRow] = []
    for chunk, start in zip(chunks, starts, strict=False):
        running = chunk.running
        request, cached = running.request, running.cached
        if request.params.prompt_logprobs is not None:
            known = max(1, len(request.prompt_logprobs or ()))  # the first token has no log-probability
            last = min(cached + chunk.count, len(request.prompt_token_ids) - 1)
            for position in range(max(cached + 1, known), last + 1):
                wanted.append(LogitRow(request, start + position - 1 - cached, position))
        if chunk.completes:
            wanted.append(LogitRow(request, start + chunk.count - 1))
    return wanted
