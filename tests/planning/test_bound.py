"""Stage 1: the paper's own figures with its own rounding, hand-worked numbers, and what must hold for any machine."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moelens.cost.hardware import HardwareSpec, Processor
from moelens.cost.work import model_weight_bytes
from moelens.models.config import GQA, LayerConfig, ModelConfig, MoEFFN, Rope
from moelens.models.registry import build
from moelens.planning.bound import (
    Bound,
    active_share,
    attention_flops_per_second,
    bound,
    effective_kv_factor,
    flops_per_streamed_byte,
    flops_per_streamed_byte_closed,
    generated_share,
    memory_bytes_per_second,
    most_tokens_per_second,
    parallelism_memory_efficiency,
    parallelism_memory_efficiency_closed,
    saturating_tokens,
    served_per_held_token,
)
from moelens.planning.catalogue import hardware_names, named_config, named_hardware

LAYER = LayerConfig(GQA(8, 2, 64, 0.125, Rope((1.0,))), MoEFFN(experts=8, active=2, width=1024))
CONFIG = ModelConfig("toy", 512, 1000, (LAYER,) * 4, torch.bfloat16, max_context=4096, tied_embeddings=False)


@pytest.mark.parametrize(
    ("tflops", "tokens", "kv_256", "kv_512"), [(150, "19.2k", 614, 1228), (181, "23.2k", 741, 1482)]
)
def test_table_2_digit_for_digit(tflops: float, tokens: str, kv_256: int, kv_512: int) -> None:
    """The paper takes 1 TFLOP for 1024 GFLOP, 128 KiB of KV a token, 1 GB for 1000 MiB, and cuts the decimals off."""
    n = saturating_tokens(tflops * 1024, 32, experts=8, active=2)
    assert f"{n / 1000:.1f}k" == tokens
    assert math.floor(n * 256 * 128 / 1024 / 1000) == kv_256
    assert math.floor(n * 512 * 128 / 1024 / 1000) == kv_512


@pytest.mark.parametrize(("p", "g", "printed"), [(98, 32, ".03564"), (98, 128, ".01090"), (926, 128, ".00832")])
def test_eq_3_in_closed_form_as_printed(p: int, g: int, printed: str) -> None:
    assert f"{parallelism_memory_efficiency_closed(p, g):.5f}" == "0" + printed


def test_eq_3_exactly_is_the_sum_that_it_says() -> None:
    for p, g in ((98, 32), (1, 1), (7, 100)):
        assert parallelism_memory_efficiency(p, g) == pytest.approx((p + g) / sum(p + j for j in range(g + 1)))
        assert served_per_held_token(p, g) == pytest.approx((p + g) / sum(p + j for j in range(g)))
    assert parallelism_memory_efficiency(98, 512) == pytest.approx(
        parallelism_memory_efficiency_closed(98, 512), rel=0.005
    )


def test_eq_1_by_hand() -> None:
    exact = flops_per_streamed_byte(100, experts=8, active=2, hidden=4, width=8, queries_per_kv_head=2)
    assert exact == pytest.approx(100 * (6 * 2 * 32 + 64 + 32) / (6 * 8 * 32 + 64 + 32))
    assert flops_per_streamed_byte_closed(100, experts=8, active=2) == 25


def test_eqs_4_to_7_by_hand() -> None:
    assert most_tokens_per_second(0.03, 1000, 2.0, 100) == 15
    assert most_tokens_per_second(0.03, 1000, 2.0, 10) == 10
    assert generated_share(96, 32) == 0.25
    assert memory_bytes_per_second(20, kv_bytes=50, weight_bytes=100) == 30
    assert attention_flops_per_second(30, 4) == 120
    assert effective_kv_factor(100, 100) == pytest.approx(200 / 150)


def machine(flops: float, link: float, memory: float, host_flops: float, device: bool) -> HardwareSpec:
    host = Processor("host", host_flops, memory, 1e12)
    if not device:
        return HardwareSpec("host only", host)
    return HardwareSpec("both", host, Processor("device", flops, 1e13, 1e10), link, link)


def bound_of(hardware: HardwareSpec, kv_bytes: float, p: int, g: int) -> Bound:
    return bound(CONFIG, hardware, kv_bytes=kv_bytes, prompt_tokens=p, output_tokens=g)


rates = st.floats(1e9, 1e15)
lengths = st.integers(1, 2000)


@given(rates, rates, rates, rates, st.booleans(), st.floats(1e7, 1e13), lengths, lengths, st.floats(1, 100))
def test_more_of_anything_never_lowers_the_bound(
    flops: float,
    link: float,
    memory: float,
    host_flops: float,
    device: bool,
    kv: float,
    p: int,
    g: int,
    factor: float,
) -> None:
    least = bound_of(machine(flops, link, memory, host_flops, device), kv, p, g).tokens_per_second
    for more in (
        bound_of(machine(flops * factor, link, memory, host_flops, device), kv, p, g),
        bound_of(machine(flops, link * factor, memory, host_flops, device), kv, p, g),
        bound_of(machine(flops, link, memory * factor, host_flops, device), kv, p, g),
        bound_of(machine(flops, link, memory, host_flops * factor, device), kv, p, g),
        bound_of(machine(flops, link, memory, host_flops, device), kv * factor, p, g),
    ):
        assert more.tokens_per_second >= least * (1 - 1e-9)


def test_below_the_turning_point_it_grows_with_memory_and_above_not_at_all() -> None:
    hardware = machine(1e12, 1e10, 1e13, 1e13, device=True)
    turning = bound_of(hardware, 1e9, 100, 100).turning_kv_bytes
    below = [bound_of(hardware, share * turning, 100, 100) for share in (0.2, 0.4)]
    above = [bound_of(hardware, share * turning, 100, 100) for share in (1.2, 8)]
    assert below[1].tokens_per_second == pytest.approx(2 * below[0].tokens_per_second)
    assert [one.limit for one in below] == ["link", "link"]
    assert above[1].tokens_per_second == above[0].tokens_per_second
    assert [one.limit for one in above] == ["compute", "compute"]


def test_long_generation_hurts_as_its_inverse() -> None:
    hardware = machine(1e15, 1e9, 1e15, 1e15, device=True)
    short, long = (bound_of(hardware, 1e9, 10_000, g) for g in (10, 20))
    assert short.tokens_per_second / long.tokens_per_second == pytest.approx(2, rel=0.01)


def test_the_papers_machine_is_limited_by_its_device_from_some_memory_on() -> None:
    config = build(named_config("Mixtral-8x7B") or {}).config
    assert model_weight_bytes(config) == pytest.approx(94e9, rel=0.01)  # the paper: 94 GB
    assert active_share(config) == 0.25
    limits = [
        bound(config, named_hardware("a40-paper"), kv_bytes=gigabytes * 1e9, prompt_tokens=98, output_tokens=g).limit
        for gigabytes, g in ((35, 32), (70, 32), (210, 32), (70, 256))
    ]
    assert limits == ["link", "compute", "compute", "link"]


@pytest.mark.parametrize("name", ["a40-paper", "a40", "l4", "t4", "a100", "h100", "rtx4090"])
def test_every_figure_of_a_preset_has_a_source(name: str) -> None:
    assert name in hardware_names()
    hardware = named_hardware(name)
    figures = {"to_device_bytes_per_second", "to_host_bytes_per_second", "step_seconds", "row_seconds"}
    for side in ("host", "device"):
        figures |= {f"{side}.{field}" for field in ("flops_per_second", "bytes_per_second", "memory_bytes")}
        figures.add(f"{side}.task_seconds")
    assert set(hardware.sources) == figures
    assert all(hardware.sources.values())
