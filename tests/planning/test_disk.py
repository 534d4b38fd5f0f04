"""What stays on disk when memory is short: as little as does, in big steps; and a prediction that knows it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from test_search import BOTH, CONFIG, CPU_ONLY, LIMITS

from moelens.cost.footprint import activation_bytes
from moelens.cost.seconds import CostModel
from moelens.cost.workload import Workload
from moelens.errors import CapacityError, ConfigError
from moelens.models.config import Quantization
from moelens.pipeline.task import Resource
from moelens.planning.advice import sizes_of
from moelens.planning.bound import bound
from moelens.planning.default import Limits, choose_plan
from moelens.planning.disk import disk_layers, host_weight_bytes, layer_bytes, read_bytes, read_layers
from moelens.planning.placement import LayerBytes
from moelens.planning.predict import memory_bytes
from moelens.planning.reading import file_bytes_per_second
from moelens.planning.report import look_ahead, to_text
from moelens.planning.search import choose

SIZES = sizes_of(CONFIG)
LAYERS = [LayerBytes(10, 100)] * 8
# Of the toy model of test_search: 4 layers of 100 MB of experts.
BLOCK = layer_bytes(CONFIG)[0].block
SHORT = dataclasses.replace(LIMITS, weight_bytes=SIZES.host_bytes((0, 1, 2)))


def test_the_fewest_layers_that_do_stay_on_disk() -> None:
    """With 8 layers of 100 bytes of experts, 10 others each and 5 beside, in a ring of 2."""
    assert disk_layers(LAYERS, 5, 885) == ()
    assert disk_layers(LAYERS, 5, 884) == (1, 4, 6) or len(disk_layers(LAYERS, 5, 884) or ()) == 3
    for budget in range(285, 886):
        chosen = disk_layers(LAYERS, 5, budget)
        assert chosen is not None and host_weight_bytes(LAYERS, 5, chosen) <= budget
        fewer = 5 + 80 + 800 - 100 * max(0, len(chosen) - 1 - 2)
        assert not chosen or fewer > budget
        assert len(read_layers(chosen)) == (2 if len(chosen) == 3 else len(chosen))
    assert disk_layers(LAYERS, 5, 284) is None


def test_what_fits_is_in_memory_and_what_does_not_is_read_in_big_steps() -> None:
    plan, _ = choose_plan(CONFIG, SIZES, LIMITS, 1)
    assert plan.disk_layers == () and plan.step_tokens == 8192
    plan, _ = choose_plan(CONFIG, SIZES, SHORT, 1)
    assert len(plan.disk_layers) == 3 and plan.step_tokens == 8192
    held = sum(memory_bytes(CONFIG, plan).values())
    short = Limits(memory_bytes=SIZES.weight_bytes * 4 // 5, max_model_len=400)
    plan, _ = choose_plan(CONFIG, SIZES, short, 1)
    assert plan.disk_layers and sum(memory_bytes(CONFIG, plan).values()) <= short.memory_bytes < held
    assert plan.kv_tokens >= 400


def test_larger_steps_send_no_weights_to_disk() -> None:
    """A cache of a given size may leave little for activations."""
    kv_bytes = 8 * activation_bytes(CONFIG, 8192)
    memory = SIZES.weight_bytes + kv_bytes + activation_bytes(CONFIG, 2048)
    plan, _ = choose_plan(CONFIG, SIZES, Limits(memory, max_model_len=400, kv_bytes=kv_bytes), 1)
    assert plan.disk_layers == () and plan.step_tokens == 2048


def test_files_are_not_quantised() -> None:
    small = dataclasses.replace(CONFIG, quantization=Quantization.INT8)
    assert read_bytes(small, (0, 1, 2, 3)) == read_bytes(CONFIG, (0, 1, 2, 3)) == 4 * BLOCK
    assert layer_bytes(small)[0].block < 0.6 * BLOCK


def test_the_cache_keeps_what_the_user_gave_it() -> None:
    limits = Limits(SIZES.weight_bytes + 60_000_000, 400, max_requests=8, step_tokens=64, kv_bytes=150_000_000)
    plan, _ = choose_plan(CONFIG, SIZES, limits, 1)
    assert plan.disk_layers
    assert sum(memory_bytes(CONFIG, plan).values()) <= limits.memory_bytes


def test_too_little_is_refused_with_what_it_takes() -> None:
    least = SIZES.host_bytes(range(4))
    limits = dataclasses.replace(LIMITS, weight_bytes=least - 1)
    with pytest.raises(CapacityError, match=rf"cpu_weights_memory_bytes is {least - 1}, but .* Raise it to {least}"):
        choose_plan(CONFIG, SIZES, limits, 1)
    with pytest.raises(CapacityError, match=r"can't hold the weights \(0\.\d\d GB with all experts on disk\)"):
        choose_plan(CONFIG, SIZES, Limits(memory_bytes=least, max_model_len=400), 1)
    without_files = dataclasses.replace(SIZES, layers=())
    with pytest.raises(CapacityError, match=r"can't hold the weights \(\d\.\d\d GB\), the activations"):
        choose_plan(CONFIG, without_files, Limits(memory_bytes=SIZES.weight_bytes // 2, max_model_len=400), 1)


@pytest.mark.parametrize("cost", [CPU_ONLY, BOTH])
def test_a_slow_disk_is_the_limit_and_a_fast_one_is_not(cost: CostModel) -> None:
    workload = Workload.even(300, 100, 20)
    slow, fast = (
        dataclasses.replace(cost, hardware=dataclasses.replace(cost.hardware, disk_bytes_per_second=rate))
        for rate in (1e8, 1e12)
    )
    choice = choose(slow, SIZES, SHORT, 1, workload)
    assert choice.plan.disk_layers == (0, 2, 3)  # of which 2 has a slot of its own, and stays there
    seconds = 2 * BLOCK / 1e8
    assert choice.prediction.seconds >= 0.98 * choice.prediction.steps * seconds
    assert choice.prediction.utilisation(Resource.DISK) > 0.9
    text = to_text(look_ahead("toy", choice, workload))
    assert "limit       the disk\n" in text
    assert "with memory for all weights" in text and "a disk twice as fast: " in text
    assert "the experts of 3 layers stay on disk, of which a step reads 0.20 GB in 2.01 s at 0.10 GB/s" in text
    quick = choose(fast, SIZES, SHORT, 1, workload)
    assert quick.prediction.seconds < choice.prediction.seconds / 5
    assert "limit       the disk\n" not in to_text(look_ahead("toy", quick, workload))


def test_the_search_takes_bigger_steps_where_reading_is_shared() -> None:
    slow = dataclasses.replace(CPU_ONLY.hardware, disk_bytes_per_second=1e8)
    prefills = Workload.even(600, 300, 2)
    choice = choose(dataclasses.replace(CPU_ONLY, hardware=slow), SIZES, SHORT, 1, prefills)
    assert choice.plan.step_tokens >= 8192
    assert choice.prediction.steps <= 600 * 301 / 8192 + 3


def test_no_schedule_exceeds_the_bound_of_the_disk() -> None:
    hardware = dataclasses.replace(CPU_ONLY.hardware, disk_bytes_per_second=1e8)
    job = {"kv_bytes": 1e9, "prompt_tokens": 100, "output_tokens": 20}
    free, held = bound(CONFIG, hardware, **job), bound(CONFIG, hardware, **job, disk_bytes=3e8)
    assert held.limit == "disk" and held.tokens_per_second == pytest.approx(held.step_tokens / 3.0)
    assert free.tokens_per_second > held.tokens_per_second


def test_the_rate_of_a_file_is_that_of_reading_its_end(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(1 << 20))
    assert file_bytes_per_second(path, threads=3, nbytes=1 << 19) > 0
    with pytest.raises(ConfigError, match=r"missing can't be read \(No such file or directory\)"):
        file_bytes_per_second(tmp_path / "missing")
