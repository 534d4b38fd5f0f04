"""Work becomes seconds by measured curves where there are some, by two rates where not."""

from __future__ import annotations

import pytest
import torch

from moelens.cost.hardware import Curve, HardwareSpec, Processor
from moelens.cost.seconds import DECODES_CALL, HUGE_PAGE_BYTES, PREFILLS_CALL, STORE_DECODES, STORE_PREFILLS, CostModel
from moelens.cost.work import stage_work
from moelens.cost.workload import StepShape
from moelens.models.config import GQA, LayerConfig, ModelConfig, MoEFFN, Rope
from moelens.pipeline.task import Experts, LayerLoad, Stage
from moelens.plan import Placement

LAYER = LayerConfig(GQA(4, 2, 4, 0.5, Rope((1.0, 0.1))), MoEFFN(8, 2, 16))
CONFIG = ModelConfig("toy", 16, 100, (LAYER,), torch.bfloat16, max_context=1024, tied_embeddings=False)
SHAPE = StepShape(decode_tokens=3, decode_context=30, prefill_tokens=5, prefill_pairs=15, logit_rows=4)
CURVES = {
    Stage.BEFORE_ATTENTION.value: Curve((1.0, 100.0), (1e-9, 1e-7), 1.0),
    STORE_DECODES: Curve((1.0,), (2.0,)),
    STORE_PREFILLS: Curve((1.0,), (1.0,)),
    Stage.ATTEND_DECODES.value: Curve((1.0,), (3.0,)),
    DECODES_CALL: Curve((1.0,), (6.0,)),
    PREFILLS_CALL: Curve((1.0,), (0.125,)),
    Stage.SAMPLE.value: Curve((1.0,), (5.0,)),
    Stage.ATTEND_PREFILLS.value: Curve((1.0, 10.0), (1.0, 2.0)),
}
MEASURED = CostModel(CONFIG, HardwareSpec("this", Processor("cpu", 1e9, 1e8, 1e9, 0.5, CURVES)))
SHEET = CostModel(CONFIG, HardwareSpec("sheet", Processor("cpu", 1e9, 1e8, 1e9)))
DEVICE = Processor("gpu", 1e12, 1e11, 1e9, 0.25)
BOTH = CostModel(CONFIG, HardwareSpec("both", SHEET.hardware.host, DEVICE, 1e7, 2e7), load_chunks=4)


def seconds(cost: CostModel, stage: Stage) -> float:
    return cost.demand(stage, 0, SHAPE).seconds


def test_by_two_rates_the_slower_tells() -> None:
    work = stage_work(Stage.AFTER_ATTENTION, CONFIG, 0, SHAPE)
    assert seconds(SHEET, Stage.AFTER_ATTENTION) == pytest.approx(max(work.flops / 1e9, work.bytes / 1e8))


def test_a_product_is_looked_up_by_its_intensity() -> None:
    work = stage_work(Stage.BEFORE_ATTENTION, CONFIG, 0, SHAPE)
    intensity = work.flops / work.weight_bytes
    assert intensity == 8  # two operations over two bytes for each of 8 rows
    assert seconds(MEASURED, Stage.BEFORE_ATTENTION) == pytest.approx(8e-9 * work.weight_bytes + 0.5)


def test_stored_rows_count_by_their_kind() -> None:
    row = 2 * 2 * 4 * 2
    assert seconds(MEASURED, Stage.STORE_KV) == pytest.approx((3 * 2.0 + 5 * 1.0) * row + 0.5)


def test_a_call_of_attention_costs_something_of_itself() -> None:
    read = 30 * 2 * 2 * 4 * 2
    assert seconds(MEASURED, Stage.ATTEND_DECODES) == pytest.approx(3.0 * read + 6.0 + 0.5)


def test_prompts_are_looked_up_by_the_keys_of_a_row() -> None:
    flops = stage_work(Stage.ATTEND_PREFILLS, CONFIG, 0, SHAPE).flops
    assert seconds(MEASURED, Stage.ATTEND_PREFILLS) == pytest.approx(2**0.4771212547 * flops + 0.125 + 0.5)


def test_the_link_moves_a_chunk_of_a_layer_and_so_does_the_hosts_memory() -> None:
    front, *experts = (BOTH.demand(Stage.LOAD, 0, SHAPE, chunk) for chunk in range(5))
    assert experts == [experts[0]] * 4
    assert experts[0].host_bytes == 3 * 16 * 16 * 8 * 2 / 4
    assert front.host_bytes + 4 * experts[0].host_bytes == stage_work(Stage.LOAD, CONFIG, 0, SHAPE).bytes
    assert front.seconds == pytest.approx(front.host_bytes / 1e7 + 0.25)
    down = BOTH.demand(Stage.OFFLOAD, 0, SHAPE)
    assert down.seconds == pytest.approx(down.host_bytes / 2e7 + 0.25)


def test_the_device_does_not_use_the_hosts_memory_unless_it_is_there() -> None:
    assert BOTH.demand(Stage.AFTER_ATTENTION, 0, SHAPE).host_bytes == 0
    assert BOTH.demand(Stage.ATTEND_DECODES, 0, SHAPE).host_bytes > 0


def test_on_a_host_alone_loads_and_transfers_are_views() -> None:
    for stage in (Stage.LOAD, Stage.OFFLOAD, Stage.UPLOAD):
        assert SHEET.demand(stage, 0, SHAPE).seconds == 0


def test_memory_that_nobody_had_comes_in_pages() -> None:
    fresh = CostModel(CONFIG, HardwareSpec("this", SHEET.hardware.host, fresh_seconds_per_byte=1 / HUGE_PAGE_BYTES))
    page_tokens = HUGE_PAGE_BYTES // (2 * 4 * 2)
    assert fresh.fresh_seconds(0, 1) == 2  # a page of keys and one of values
    assert fresh.fresh_seconds(1, page_tokens) == 0
    assert fresh.fresh_seconds(page_tokens, 2 * page_tokens + 1) == 4


def test_sampling_is_looked_up_by_its_rows() -> None:
    assert seconds(MEASURED, Stage.SAMPLE) == pytest.approx(5.0 * 4 * 100 * 4 + 0.5)


def test_resumed_prompts_cost_as_prompts_do() -> None:
    shape = StepShape(prefill_tokens=5, prefill_pairs=50, resumed_tokens=5, resumed_pairs=50)
    flops = stage_work(Stage.ATTEND_RESUMED, CONFIG, 0, shape).flops
    assert flops == 4 * 50 * 16
    assert MEASURED.demand(Stage.ATTEND_RESUMED, 0, shape).seconds == pytest.approx(2.0 * flops + 0.125 + 0.5)


def test_few_rows_bring_only_the_experts_that_they_go_to() -> None:
    """Of 8 experts, a row goes to 2, 2 rows to 3.5 and 3 rows to 4.6: up to a half, these are brought alone."""
    streamed = Placement(True, frozenset(), 1, 1, 1, 1, 1)
    cost = CostModel(CONFIG, BOTH.hardware, placement=streamed)
    assert [cost.layer_loads(rows)[0].experts for rows in (1, 2, 3)] == [Experts.ROUTED, Experts.ROUTED, Experts.WHOLE]
    assert cost.layer_loads()[0] == LayerLoad(front=False, experts=Experts.WHOLE)
    held = CostModel(CONFIG, BOTH.hardware, placement=Placement(True, frozenset({0}), 1, 1, 1, 1, 1))
    assert held.layer_loads(1) == (LayerLoad(),)
