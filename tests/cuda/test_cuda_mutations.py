"""The checks are worth something: a kernel that is broken on purpose is noticed (see mutations.py)."""

from __future__ import annotations

import pytest
from mutations import WAITS, Laboratory, Mutant, mutants

QUICK = (WAITS[1],)  # each takes some ten seconds


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory(tmp_path_factory.mktemp("mutants") / "root")


@pytest.mark.parametrize("mutant", QUICK, ids=lambda mutant: mutant.name)
def test_a_broken_kernel_is_noticed(laboratory: Laboratory, mutant: Mutant) -> None:
    assert laboratory.notice(mutant)


@pytest.mark.slow
def test_nothing_is_noticed_of_sound_kernels(laboratory: Laboratory) -> None:
    assert laboratory.notice(None) == ""


@pytest.mark.slow
@pytest.mark.parametrize("mutant", mutants(), ids=lambda mutant: mutant.name)
def test_every_broken_kernel_is_noticed(laboratory: Laboratory, mutant: Mutant) -> None:
    assert laboratory.notice(mutant)


def test_every_mutant_differs_from_the_sources(laboratory: Laboratory) -> None:
    for mutant in mutants():
        mutant.apply(laboratory.root)
        mutant.revert(laboratory.root)
