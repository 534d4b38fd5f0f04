"""The ring knows what lies where, and refuses to use or overwrite what it must not."""

from __future__ import annotations

import pytest

from moelens.memory.ring import Ring


def test_a_layer_can_be_used_only_while_it_is_in_its_slot() -> None:
    ring = Ring([0, 2, 3], 2)
    assert [ring.index(layer) for layer in (0, 2, 3)] == [0, 1, 0]
    with pytest.raises(AssertionError, match="layer 0 is not in its ring slot, layer None is"), ring.using(0, {1}):
        pass
    ring.claim(0).chunks.update({0, 1})
    with ring.using(0, {0, 1}):
        pass
    with pytest.raises(AssertionError, match=r"chunks \[2\] of layer 0 have not been loaded"), ring.using(0, {1, 2}):
        pass
    ring.claim(3).chunks.add(0)
    with pytest.raises(AssertionError, match="layer 0 is not in its ring slot, layer 3 is"), ring.using(0, {0}):
        pass
    assert ring.chunks(0) == set() and ring.chunks(3) == {0}


def test_a_slot_that_is_used_is_not_overwritten() -> None:
    ring = Ring([0, 1, 2], 2)
    ring.claim(0).chunks.add(1)
    with ring.using(0, {1}), pytest.raises(AssertionError, match="layer 2 would overwrite layer 0, which is in use"):
        ring.claim(2)
    ring.claim(2)


def test_single_experts_must_have_come() -> None:
    ring = Ring([0], 2)
    ring.claim(0).experts.update({1, 4})
    with ring.using(0, set(), {4}):
        pass
    with pytest.raises(AssertionError, match=r"experts \[2\] of layer 0"), ring.using(0, set(), {2, 4}):
        pass
