"""The formula set, by numbers worked out by hand and by what a model's tensors really take."""

from __future__ import annotations

import math

import pytest
import torch

from moelens.cost.work import Work, layer_weight_bytes, model_weight_bytes, stage_work
from moelens.cost.workload import StepShape
from moelens.memory.layout import SlabLayout
from moelens.models.config import GQA, DenseFFN, LayerConfig, ModelConfig, MoEFFN, Quantization, Rope
from moelens.models.registry import build
from moelens.ops.native import NativeOps
from moelens.pipeline.task import Stage

ROPE = Rope((1.0, 0.1))
ATTENTION = GQA(query_heads=4, kv_heads=2, head_dim=4, scale=0.5, rope=ROPE)
SPARSE, DENSE = LayerConfig(ATTENTION, MoEFFN(8, 2, 16)), LayerConfig(ATTENTION, DenseFFN(24))
CONFIG = ModelConfig("toy", 16, 100, (SPARSE, DENSE), torch.bfloat16, max_context=1024, tied_embeddings=False)
SHAPE = StepShape(decode_tokens=3, decode_context=30, prefill_tokens=5, prefill_pairs=15, logit_rows=4)


@pytest.mark.parametrize(
    ("stage", "layer", "flops", "weights"),
    [
        (Stage.BEFORE_ATTENTION, 0, 2 * 8 * 16 * 32, 16 * 32 * 2),
        (Stage.ATTEND_DECODES, 0, 4 * 30 * 16, 0),
        (Stage.ATTEND_PREFILLS, 0, 4 * 15 * 16, 0),
        # The last layer finishes only the 4 rows that give logits.
        (Stage.AFTER_ATTENTION, 1, 2 * 4 * 16 * 16 + 6 * 4 * 16 * 24, (16 * 16 + 3 * 16 * 24) * 2),
        (Stage.LOGITS, 0, 2 * 4 * 100 * 16, 100 * 16 * 2),
        (Stage.LOAD, 1, 0, (16 * 32 + 16 * 16 + 3 * 16 * 24) * 2),
        (Stage.READ, 1, 0, 3 * 16 * 24 * 2),
        (Stage.STORE_KV, 0, 0, 0),
    ],
)
def test_operations_and_weights_by_hand(stage: Stage, layer: int, flops: int, weights: int) -> None:
    work = stage_work(stage, CONFIG, layer, SHAPE)
    assert (work.flops, work.weight_bytes) == (flops, weights)


def test_experts_count_only_where_a_token_goes() -> None:
    work = stage_work(Stage.AFTER_ATTENTION, CONFIG, 0, SHAPE)
    assert work.flops == 2 * 8 * 16 * 16 + 2 * 8 * 16 * 8 + 6 * 8 * 2 * 16 * 16
    touched = 8 * (1 - 0.75**8)
    assert work.weight_bytes == pytest.approx((16 * 16 + 16 * 8 + 3 * 16 * 16 * touched) * 2)


def test_attention_reads_the_keys_and_values_that_it_sees() -> None:
    assert stage_work(Stage.ATTEND_DECODES, CONFIG, 0, SHAPE).kv_bytes == 30 * 2 * 2 * 4 * 2 == 960
    assert stage_work(Stage.STORE_KV, CONFIG, 0, SHAPE).kv_bytes == 8 * 2 * 2 * 4 * 2
    work = stage_work(Stage.ATTEND_DECODES, CONFIG, 0, SHAPE)
    assert work.flops / work.kv_bytes == 4 / 2  # Eq 6: s operations per byte, s query heads per KV head


def test_a_window_bounds_what_is_seen() -> None:
    layer = LayerConfig(GQA(4, 2, 4, 0.5, ROPE, window=6), DENSE.ffn)
    config = ModelConfig("toy", 16, 100, (layer,), torch.bfloat16, 1024, False)
    assert stage_work(Stage.ATTEND_DECODES, config, 0, SHAPE).flops == 4 * 3 * 6 * 16


def test_what_crosses_the_link_is_k_and_v_of_all_rows_and_q_of_decodes() -> None:
    assert stage_work(Stage.OFFLOAD, CONFIG, 0, SHAPE).bytes == (8 * 2 * 8 + 3 * 16) * 2
    assert stage_work(Stage.UPLOAD, CONFIG, 0, SHAPE).bytes == 3 * 16 * 2


def test_no_rows_no_work() -> None:
    for stage in set(Stage) - {Stage.LOAD, Stage.READ}:
        assert stage_work(stage, CONFIG, 0, StepShape()).bytes == 0


def test_layer_weights_are_those_of_the_architecture() -> None:
    raw: dict[str, object] = {
        "model_type": "mixtral",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 3,
        "vocab_size": 256,
        "max_position_embeddings": 128,
        "dtype": "bfloat16",
    }
    model = build(raw)
    matrices = [[spec for spec in layer if len(spec.shape) > 1] for layer in model.layer_tensors]
    assert layer_weight_bytes(model.config, 1) == 2 * sum(math.prod(spec.shape) for spec in matrices[1])
    everything = [*(spec for layer in matrices for spec in layer)]
    everything += [spec for spec in model.resident_tensors if len(spec.shape) > 1]
    assert model_weight_bytes(model.config) == 2 * sum(math.prod(spec.shape) for spec in everything)


def test_quantised_weights_are_counted_as_they_are_stored() -> None:
    """A byte each and a scale a row; dimensions that need no padding, so that storage is neither more nor less."""
    raw: dict[str, object] = {
        "model_type": "qwen2_moe",
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "mlp_only_layers": [1],
        "vocab_size": 256,
        "max_position_embeddings": 128,
        "dtype": "bfloat16",
    }
    model, ops = build(raw, quantization=Quantization.INT8), NativeOps(1)
    for layer, specs in enumerate(model.layer_tensors):
        entries = SlabLayout.of(specs, ops, torch.bfloat16).entries
        counted = [entry for entry in entries if len(entry.logical) > 1 and entry.name != "shared_gate"]
        router = [entry for entry in counted if entry.name == "router"]
        expected = sum(entry.nbytes for entry in counted if entry not in router) + sum(
            math.prod(entry.logical) * 2 for entry in router
        )
        assert layer_weight_bytes(model.config, layer) == expected
        assert stage_work(Stage.LOAD, model.config, layer, SHAPE).weight_bytes == expected
    many = StepShape(prefill_tokens=10_000, prefill_pairs=10_000, logit_rows=10_000)
    whole = [stage_work(stage, model.config, 0, many) for stage in (Stage.BEFORE_ATTENTION, Stage.AFTER_ATTENTION)]
    assert sum(work.weight_bytes for work in whole) == pytest.approx(layer_weight_bytes(model.config, 0))
    plain = build(raw).config
    assert stage_work(Stage.EXPERTS, plain, 0, many).flops == stage_work(Stage.EXPERTS, model.config, 0, many).flops


def test_work_adds_up() -> None:
    total = Work(1, 2, 3, 4) + Work(10, 20, 30, 40)
    assert total == Work(11, 22, 33, 44)
    assert (total.bytes, total.intensity) == (99, 11 / 99)
