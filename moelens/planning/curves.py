"""From measured steps to the curves of a machine's description."""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

from moelens.cost.hardware import Curve, HardwareSpec, Processor
from moelens.cost.routing import EVEN
from moelens.cost.seconds import DECODES_CALL, PREFILLS_CALL, ROW_WISE, STORE_DECODES, STORE_PREFILLS
from moelens.cost.work import Work, expert_weight_bytes, stage_work
from moelens.models.architecture import Architecture
from moelens.models.config import ModelConfig, MoEFFN
from moelens.pipeline.task import Stage
from moelens.planning.samples import Sample

MANY_ROWS = 512  # of prompts, beside which what a call of attention costs of itself is nothing
LEAST_SECONDS = 1e-7  # a curve has no zeros
DECODE_CONTEXT = 96  # of the steps in which only the number of rows is varied


def summarise(architecture: Architecture, samples: Iterable[Sample], by_threads: tuple[float, ...]) -> HardwareSpec:
    """The curves that the samples lie on, of a host that does all."""
    config, several = architecture.config, list(samples)
    points: dict[str, dict[float, list[float]]] = {}

    def add(name: str, x: float, y: float) -> None:
        points.setdefault(name, {}).setdefault(round(x, 9), []).append(y)

    best_flops = 0.0
    for sample in several:
        shape, seconds = sample.shape, sample.seconds
        for stage in ROW_WISE:
            work = _work(stage, config, sample)
            # A few rows of one prompt go to fewer experts than as many rows of different requests.
            if stage is Stage.LOGITS or shape.decode_tokens or shape.prefill_tokens >= MANY_ROWS:
                add(stage.value, work.flops / work.weight_bytes, seconds[stage] / work.weight_bytes)
                best_flops = max(best_flops, work.flops / seconds[stage])
        sampled = stage_work(Stage.SAMPLE, config, 0, shape).bytes
        add(Stage.SAMPLE.value, shape.logit_rows, seconds[Stage.SAMPLE] / sampled)
        per_byte = seconds[Stage.STORE_KV] / stage_work(Stage.STORE_KV, config, 0, shape).kv_bytes
        if shape.decode_tokens:
            add(STORE_DECODES, shape.decode_tokens, per_byte)
            context = shape.decode_context / shape.decode_tokens
            if shape.decode_tokens > 1 and context != DECODE_CONTEXT + 1:
                read = stage_work(Stage.ATTEND_DECODES, config, 0, shape).kv_bytes
                add(Stage.ATTEND_DECODES.value, context, seconds[Stage.ATTEND_DECODES] / read)
        else:
            add(STORE_PREFILLS, shape.prefill_tokens, per_byte)
            if shape.prefill_tokens >= MANY_ROWS:
                flops = stage_work(Stage.ATTEND_PREFILLS, config, 0, shape).flops
                keys = shape.prefill_pairs / shape.prefill_tokens
                add(Stage.ATTEND_PREFILLS.value, keys, seconds[Stage.ATTEND_PREFILLS] / flops)
    for name, rows, extra in _calls(config, several, points):
        add(name, rows, extra)
    growing = {stage.value for stage in ROW_WISE}
    stages = {name: _curve(ys, 1.0 if name in growing else 0.0) for name, ys in sorted(points.items())}
    # Of decodes, whose tasks wait for each other also where there is a device.
    overhead = max(0.0, statistics.median(sample.outside_seconds for sample in several if sample.shape.decode_tokens))
    host = Processor("this processor", best_flops, max(by_threads), _memory_bytes(), overhead, stages)
    return HardwareSpec("this", host, bytes_per_second_by_threads=by_threads)


def _calls(
    config: ModelConfig, samples: Sequence[Sample], points: Mapping[str, Mapping[float, list[float]]]
) -> Iterator[tuple[str, float, float]]:
    """What calls of attention took beyond the seconds of their rows: the curve's name, rows, seconds."""
    decode, prefill = (_curve(points[stage.value], 0.0) for stage in (Stage.ATTEND_DECODES, Stage.ATTEND_PREFILLS))
    for sample in samples:
        shape, seconds = sample.shape, sample.seconds
        if shape.decode_tokens and shape.decode_context == shape.decode_tokens * (DECODE_CONTEXT + 1):
            read = stage_work(Stage.ATTEND_DECODES, config, 0, shape).kv_bytes
            extra = seconds[Stage.ATTEND_DECODES] - decode.at(DECODE_CONTEXT + 1) * read
            yield DECODES_CALL, shape.decode_tokens, max(LEAST_SECONDS, extra)
        elif 0 < shape.prefill_tokens < MANY_ROWS:
            flops = stage_work(Stage.ATTEND_PREFILLS, config, 0, shape).flops
            extra = seconds[Stage.ATTEND_PREFILLS] - prefill.at(shape.prefill_pairs / shape.prefill_tokens) * flops
            yield PREFILLS_CALL, shape.prefill_tokens, max(LEAST_SECONDS, extra)


def _work(stage: Stage, config: ModelConfig, sample: Sample) -> Work:
    """What the stage did in a layer: random weights and few distinct rows don't touch as many experts as even routing
    would, so the experts are those that were counted."""
    work, ffn = stage_work(stage, config, 0, sample.shape), config.layers[0].ffn
    if stage is not Stage.AFTER_ATTENTION or not isinstance(ffn, MoEFFN) or not sample.experts_touched:
        return work
    missed = EVEN.touched(ffn, sample.shape.tokens) - sample.experts_touched
    return dataclasses.replace(
        work, weight_bytes=work.weight_bytes - missed / ffn.experts * expert_weight_bytes(config, 0)
    )


def _curve(points: Mapping[float, list[float]], growth: float) -> Curve:
    x = tuple(sorted(points))
    return Curve(x, tuple(statistics.median(points[one]) for one in x), growth)


def _memory_bytes() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
