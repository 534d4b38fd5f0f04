"""Rows that the host finishes: by cost, and so that both sides end together."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moelens.cost.division import MOST_ROWS, DividedLayer
from moelens.cost.hardware import HardwareSpec, Processor
from moelens.cost.seconds import CostModel
from moelens.cost.work import expert_weight_bytes
from moelens.cost.workload import LayerSeconds
from moelens.models.config import GQA, LayerConfig, ModelConfig, MoEFFN, Rope
from moelens.pipeline.task import Stage

LAYER = LayerConfig(GQA(8, 2, 64, 0.125, Rope((1.0,))), MoEFFN(experts=16, active=2, width=512))
CONFIG = ModelConfig("toy", 512, 1000, (LAYER,) * 2, torch.bfloat16, max_context=4096, tied_embeddings=False)
EXPERT_BYTES = expert_weight_bytes(CONFIG, 0) / 16
DEVICE = Processor("device", 1e13, 1e12, 1e10)


def layer(
    link: float, host: float = 8e9, scales: dict[Stage, float] | None = None, device: Processor = DEVICE
) -> DividedLayer:
    hardware = HardwareSpec("some", Processor("host", 1e12, host, 1e10), device, link, link)
    return DividedLayer(CostModel(CONFIG, hardware, scales=scales or {}), 0)


def seconds(divided: DividedLayer, ids: list[list[int]], rows: set[int], present: set[int], busy: float) -> float:
    """Until the device has computed its rows, and the host's are there."""
    left = set(range(len(ids))) - rows
    of_host, of_device = ({expert for row in several for expert in ids[row]} for several in (rows, left))
    own = divided.host_seconds(len(rows), len(of_host)) + busy if rows else 0.0
    ready = max(divided.link_seconds(len(of_device - present)), own)
    return ready + divided.device_seconds(len(left), len(of_device))


ids_of = st.lists(st.lists(st.integers(0, 15), min_size=2, max_size=2, unique=True), max_size=7)


@given(ids_of, st.sets(st.integers(0, 15)), st.sampled_from([5e8, 4e9, 2e10]), st.sampled_from([0.0, 2e-4]))
def test_a_division_is_never_worse_than_none(ids, present, link, busy) -> None:
    divided = layer(link)
    rows = divided.rows_of_host(ids, present, busy)
    assert rows == sorted(set(rows)) and set(rows) <= set(range(len(ids)))
    assert seconds(divided, ids, set(rows), present, busy) <= seconds(divided, ids, set(), present, busy)


def test_divisions_are_near_the_best_ones() -> None:
    random_ = random.Random(0)
    for _ in range(40):
        ids = [random_.sample(range(16), 2) for _ in range(random_.randint(1, 7))]
        divided = layer(random_.choice([2e9, 4e9, 8e9]))
        choices = itertools.chain.from_iterable(
            itertools.combinations(range(len(ids)), count) for count in range(len(ids) + 1)
        )
        best = min(seconds(divided, ids, set(rows), set(), 0.0) for rows in choices)
        found = seconds(divided, ids, set(divided.rows_of_host(ids, set(), 0.0)), set(), 0.0)
        assert found <= 1.5 * best  # greedy: by an expert or two of a few
    assert divided.rows_of_host([[3, 4]], {3, 4}, 0.0) == []  # what is there need not be brought


def test_a_lone_row_is_finished_where_its_experts_come_from_sooner() -> None:
    assert layer(link=4e9).rows_of_host([[1, 9]], set(), 0.0) == [0]
    assert layer(link=2e10).rows_of_host([[1, 9]], set(), 0.0) == []
    both = 2 * EXPERT_BYTES
    assert layer(link=4e9).rows_of_host([[1, 9]], set(), busy_seconds=both / 4e9) == []  # the host has other work
    assert layer(link=4e9, scales={Stage.FINISH_ROWS: 3.0}).rows_of_host([[1, 9]], set(), 0.0) == []  # and is slow
    assert layer(link=2e10, scales={Stage.LOAD_EXPERTS: 9.0}).rows_of_host([[1, 9]], set(), 0.0) == [0]


def test_what_the_device_takes_for_its_rows_counts() -> None:
    slow = replace(DEVICE, bytes_per_second=8e9)  # as fast as the host
    assert layer(link=2e10, device=slow).rows_of_host([[1, 9]], set(), 0.0) == [0]
    assert layer(link=2e10, device=slow).rows_of_host([[1, 9]], {1, 9}, 0.0) == []
    assert layer(link=2e10, device=slow, scales={Stage.AFTER_ATTENTION: 0.1}).rows_of_host([[1, 9]], set(), 0.0) == []
    assert layer(link=2e10).device_seconds(0, 0) == 0.0


def test_waiting_for_the_router_pays_for_few_rows() -> None:
    divided, none = layer(link=4e9), LayerSeconds()
    assert divided.pays(1, none) and divided.pays(8, none)
    assert not divided.pays(8, LayerSeconds(attending=divided.link_seconds(16)))
    assert not divided.pays(MOST_ROWS + 1, none)
    assert not layer(link=4e9, host=1e8).pays(8, none)


def test_it_does_not_pay_where_the_experts_come_while_rows_attend() -> None:
    divided = layer(link=4e9)
    whole = divided.link_seconds(16)
    assert divided.pays(2, LayerSeconds(choosing=0.2 * whole))
    assert not divided.pays(2, LayerSeconds(choosing=2 * whole)), "then they are there, and the rows would wait longer"
    assert divided.pays(2, LayerSeconds(finishing=2 * whole)), "the host is another processor that finishes rows"


def test_host_seconds_count_experts_once_and_rows_each() -> None:
    divided = layer(link=4e9)
    assert divided.host_seconds(1, 2) >= 2 * EXPERT_BYTES / 8e9
    assert divided.host_seconds(2, 2) < 1.1 * divided.host_seconds(1, 2)  # bound by reading
    assert divided.host_seconds(4000, 2) == pytest.approx(6 * 4000 * 2 * 512 * 512 / 1e12)  # bound by computing
