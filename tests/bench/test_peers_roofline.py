"""The roofline of the peers' workloads: what was worked out apart from moelens.cost, and what must hold of any."""

import pytest
import torch

from bench.ceilings import Ceiling
from bench.peers.roofline import least, prefill_shapes
from bench.peers.workload import Workload
from moelens.models.config import GQA, LayerConfig, ModelConfig, MoEFFN, Rope

CEILING = Ceiling(463e9, 50e9)


def model(layers: int, head_dim: int, ffn: MoEFFN) -> ModelConfig:
    attention = GQA(16, 4, head_dim, head_dim**-0.5, Rope((1.0,)))
    return ModelConfig("m", 1024, 32768, (LayerConfig(attention, ffn),) * layers, torch.bfloat16, 8192, False)


QWEN3 = model(16, 128, MoEFFN(64, 8, 384))
MIXTRAL = model(12, 64, MoEFFN(8, 2, 3584))


@pytest.mark.parametrize(
    ("config", "workload", "prefill", "decode"),
    [
        (QWEN3, "64x128x64", 8.51, 4.88),  # decode by computing
        (QWEN3, "32x512x128", 17.89, 8.19),  # decode by reading
        (QWEN3, "256x64x32", 16.89, 9.42),
        (MIXTRAL, "64x128x64", 10.53, 5.80),
        (MIXTRAL, "32x512x128", 21.39, 6.27),
        (MIXTRAL, "256x64x32", 21.03, 11.36),
    ],
)
def test_the_least_seconds_are_those_of_a_separate_count(
    config: ModelConfig, workload: str, prefill: float, decode: float
) -> None:
    found = least(config, Workload.parse(workload), CEILING)
    assert found.prefill_seconds == pytest.approx(prefill, rel=2e-3)
    assert found.decode_seconds == pytest.approx(decode, rel=2e-2)  # steps near the balance may go either way


def test_prefill_steps_share_out_everything() -> None:
    shapes = prefill_shapes(Workload(33, 512, 8))
    assert len(shapes) == 3
    assert sum(shape.prefill_tokens for shape in shapes) == 33 * 512
    assert sum(shape.prefill_pairs for shape in shapes) == 33 * 512 * 513 // 2
    assert sum(shape.logit_rows for shape in shapes) == 33


def test_ceilings_bound_by_whichever_is_slower() -> None:
    assert Ceiling(10.0, 2.0).least_seconds(100.0, 4.0) == 10.0
    assert Ceiling(10.0, 2.0).least_seconds(100.0, 40.0) == 20.0
    assert Ceiling(10.0, 2.0).mean(Ceiling(20.0, 4.0)) == Ceiling(15.0, 3.0)


def test_needed_work_leaves_out_the_last_layer_of_rows_without_tokens() -> None:
    work = Workload.parse("64x128x64")
    found, needed = least(QWEN3, work, CEILING), least(QWEN3, work, CEILING, every_row=False)
    spared = 64 * 127 * 2 * (16 * 128 * 1024 + 1024 * 64 + 3 * 8 * 384 * 1024)  # o, router and experts of one layer
    assert found.prefill_seconds - needed.prefill_seconds == pytest.approx(spared / 463e9, rel=1e-9)
    assert found.decode_seconds == needed.decode_seconds
