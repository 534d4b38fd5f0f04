"""Length distributions keep the mean and the maximum that they are made from."""

from __future__ import annotations

import pytest

from moelens.cost.workload import StepShape, Workload
from moelens.errors import ConfigError


@pytest.mark.parametrize(("mean", "longest"), [(98, 450), (926, 1843), (400, 450), (128, 410)])
def test_a_spread_has_the_mean_and_keeps_the_longest(mean: int, longest: int) -> None:
    workload = Workload.spread(5000, mean, longest, 32)
    assert workload.mean_prompt_tokens == pytest.approx(mean, rel=0.01)
    assert longest * 0.95 <= max(workload.prompt_tokens) <= longest
    assert workload.prompt_tokens != tuple(sorted(workload.prompt_tokens))
    assert workload == Workload.spread(5000, mean, longest, 32)


def test_a_mean_that_no_such_spread_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="can't have a mean"):
        Workload.spread(10, 500, 400, 32)


def test_counts() -> None:
    workload = Workload((3, 5), (2, 4))
    assert (workload.requests, workload.total_tokens, workload.mean_prompt_tokens) == (2, 14, 4)
    assert Workload((3, 5), (6, 2)).longest_tokens == 9
    assert Workload.even(3, 5, 7).total_tokens == 36


def test_an_empty_or_uneven_workload_is_refused() -> None:
    for prompts, outputs in (((), ()), ((1,), ()), ((0,), (1,)), ((1,), (0,))):
        with pytest.raises(ConfigError):
            Workload(prompts, outputs)


def test_shapes_add_up() -> None:
    assert StepShape(1, 2, 3, 4, 5) + StepShape(10, 20, 30, 40, 50) == StepShape(11, 22, 33, 44, 55)
