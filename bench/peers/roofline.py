"""The least seconds that a workload can take on a machine: each phase's work, by moelens.cost, over two ceilings.

Counted: every product, the experts that a step's tokens choose (evenly), attention, the head for the rows that give
tokens, each weight once per step, keys and values once. Free: activations, norms, softmax, sampling, and the steps'
order. Every token goes through every layer, as in the peers; a program that finishes the last layer only for rows that
give tokens, as moelens does, has done without a part of this work, so what is needed is told beside.
Prefill comes in steps of CHUNK_TOKENS, decode in steps of all requests; computing and reading overlap fully.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.ceilings import Ceiling
from bench.peers.workload import Workload
from moelens.cost.work import Work, stage_work
from moelens.cost.workload import StepShape
from moelens.models.config import ModelConfig
from moelens.pipeline.task import Stage

CHUNK_TOKENS = 8192
PREFILL = (Stage.BEFORE_ATTENTION, Stage.STORE_KV, Stage.ATTEND_PREFILLS, Stage.AFTER_ATTENTION)
DECODE = (Stage.BEFORE_ATTENTION, Stage.ATTEND_DECODES, Stage.AFTER_ATTENTION)


@dataclass(frozen=True)
class Least:
    """Seconds of the two phases that no implementation can be below."""

    prefill_seconds: float
    decode_seconds: float

    @property
    def seconds(self) -> float:
        return self.prefill_seconds + self.decode_seconds


def step_work(config: ModelConfig, shape: StepShape, stages: tuple[Stage, ...], every_row: bool) -> Work:
    """Of all layers, and of the head. With `every_row` the last layer is finished for rows that give no token too."""
    rows = replace(shape, logit_rows=shape.tokens) if every_row else shape
    layers = (stage_work(stage, config, layer, rows) for layer in range(len(config.layers)) for stage in stages)
    return sum(layers, stage_work(Stage.LOGITS, config, 0, shape))


def prefill_shapes(workload: Workload) -> list[StepShape]:
    """Prompts in steps of CHUNK_TOKENS, as if each step had its share of all prompts."""
    tokens = workload.requests * workload.prompt_tokens
    steps = -(-tokens // CHUNK_TOKENS)
    pairs = workload.requests * workload.prompt_tokens * (workload.prompt_tokens + 1) // 2

    def share(amount: int, step: int) -> int:
        return amount * (step + 1) // steps - amount * step // steps

    return [
        StepShape(
            prefill_tokens=share(tokens, step),
            prefill_pairs=share(pairs, step),
            logit_rows=share(workload.requests, step),
        )
        for step in range(steps)
    ]


def least(config: ModelConfig, workload: Workload, ceiling: Ceiling, *, every_row: bool = True) -> Least:
    """The roofline of a workload: of the work that peers do, or without `every_row` of what its tokens need."""
    prefill = sum((step_work(config, shape, PREFILL, every_row) for shape in prefill_shapes(workload)), Work())
    decode = 0.0
    for step in range(1, workload.output_tokens):
        rows = workload.requests
        shape = StepShape(decode_tokens=rows, decode_context=rows * (workload.prompt_tokens + step), logit_rows=rows)
        decode += _seconds(step_work(config, shape, DECODE, every_row), ceiling)
    return Least(_seconds(prefill, ceiling), decode)


def _seconds(work: Work, ceiling: Ceiling) -> float:
    return ceiling.least_seconds(work.flops, work.weight_bytes + work.kv_bytes)
