"""What lies on the device: all that fits, to the byte, and a clear refusal of what can't be."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moelens.errors import CapacityError, ConfigError
from moelens.planning.placement import DeviceNeeds, LayerBytes, place, spread

LAYERS = [LayerBytes(10, 100)] * 6
NEEDS = DeviceNeeds(resident=50, activations=20, transfers=5)


@pytest.mark.parametrize(
    ("memory", "fronts", "layers", "ring_bytes"),
    [
        (75 + 2 * 110, False, set(), 220),
        (75 + 60 + 2 * 100 - 1, False, set(), 220),
        (75 + 60 + 2 * 100, True, set(), 200),
        (75 + 60 + 3 * 100, True, {3}, 200),
        (75 + 60 + 5 * 100 - 1, True, {1, 4}, 200),
        (75 + 60 + 6 * 100, True, {0, 1, 2, 3, 4, 5}, 0),
    ],
)
def test_what_fits_stays(memory: int, fronts: bool, layers: set[int], ring_bytes: int) -> None:
    placement = place(LAYERS, NEEDS, 2, memory)
    assert (placement.fronts, placement.layers, placement.ring_bytes) == (fronts, layers, ring_bytes)
    assert placement.weight_bytes == 50 + 60 * fronts + 100 * len(layers)
    assert placement.device_bytes <= memory


def test_too_little_is_told_by_purpose() -> None:
    with pytest.raises(CapacityError, match=r"of 0\.0 MB can't hold .*: embedding, .* a ring of 2 layers .* in all"):
        place(LAYERS, NEEDS, 2, 75 + 2 * 110 - 1)


@pytest.mark.parametrize("resident", [0, 1, 3, 6])
def test_as_many_layers_stay_as_were_asked_for(resident: int) -> None:
    placement = place(LAYERS, NEEDS, 2, 1000, resident)
    assert len(placement.layers) == resident
    assert placement.weight_bytes == 50 + 60 + 100 * resident
    assert placement.ring_layers == min(2, 6 - resident)


def test_more_layers_than_fit_or_than_there_are_are_refused() -> None:
    memory = 75 + 60 + 5 * 100
    assert len(place(LAYERS, NEEDS, 2, memory, 3).layers) == 3
    with pytest.raises(CapacityError, match=r"4 layers that stay, a ring of 2 others 0\.0 MB.*lower.*resident_layers"):
        place(LAYERS, NEEDS, 2, memory, 4)
    with pytest.raises(ConfigError, match="resident_layers is 7, but the model has 6 layers: lower it"):
        place(LAYERS, NEEDS, 2, memory, 7)


@given(
    st.lists(st.builds(LayerBytes, st.integers(0, 9), st.integers(1, 50)), min_size=1, max_size=9),
    st.integers(2, 4),
    st.integers(0, 600),
)
def test_the_budget_is_kept_whatever_the_layers(layers: list[LayerBytes], ring_layers: int, memory: int) -> None:
    try:
        placement = place(layers, NEEDS, ring_layers, memory)
    except CapacityError:
        return
    assert placement.device_bytes <= memory
    streamed = [layer for i, layer in enumerate(layers) if i not in placement.layers]
    needed = max((layer.block + (0 if placement.fronts else layer.front) for layer in streamed), default=0)
    assert placement.slot_bytes >= needed and placement.ring_layers >= min(ring_layers, len(streamed))
    more = place(layers, NEEDS, ring_layers, memory + sum(layer.front + layer.block for layer in layers) + 100)
    assert more.weight_bytes >= placement.weight_bytes


@given(st.integers(0, 40), st.integers(1, 40))
def test_layers_that_stay_are_spread(count: int, of: int) -> None:
    count = min(count, of)
    chosen = sorted(spread(count, of))
    assert len(chosen) == count and all(0 <= layer < of for layer in chosen)
    gaps = [b - a for a, b in itertools.pairwise(chosen)]
    assert not gaps or max(gaps) - min(gaps) <= 1
