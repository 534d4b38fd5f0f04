"""Layout and store: every entry aligned and disjoint, one slab per layer, the views the ops expect."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from moelens.memory.arena import Arena
from moelens.memory.layout import SlabLayout
from moelens.memory.weights import allocate
from moelens.models.architecture import Form, TensorSpec


class PaddedShapes:
    """Storage shapes of ops that pad rows to 32: unlike the logical shapes, so that a mix-up shows."""

    def matrix_shape(self, rows, columns, dtype):
        return (-(-rows // 32), columns, 32)

    def gate_up_shape(self, width, columns, dtype):
        return (-(-width // 32), columns, 2, 32)

    def down_shape(self, rows, width, dtype):
        return (-(-rows // 32), width, 32)


def spec(name, form, *shape):
    return TensorSpec(name, form, shape, ())


LAYER = (
    spec("norm", Form.PLAIN, 9),
    spec("qkv", Form.MATRIX, 33, 9),
    spec("experts.gate_up", Form.GATE_UP, 3, 2, 5, 9),
    spec("experts.down", Form.DOWN, 3, 9, 5),
)
RESIDENT = (spec("embedding", Form.PLAIN, 7, 9), spec("head", Form.MATRIX, 7, 9))


def store_of(*layers, dtype=torch.bfloat16):
    architecture = SimpleNamespace(config=SimpleNamespace(dtype=dtype), resident_tensors=RESIDENT, layer_tensors=layers)
    return allocate(architecture, PaddedShapes())


def test_entries_are_aligned_in_order_and_disjoint():
    layout = SlabLayout.of(LAYER, PaddedShapes(), torch.bfloat16)
    assert [entry.name for entry in layout.entries] == [s.name for s in LAYER]
    assert [entry.shape for entry in layout.entries] == [(9,), (2, 9, 32), (3, 1, 9, 2, 32), (3, 1, 5, 32)]
    end = 0
    for entry in layout.entries:
        assert entry.offset % 256 == 0 and 0 <= entry.offset - end < 256
        assert entry.nbytes == math.prod(entry.shape) * 2
        end = entry.offset + entry.nbytes
    assert 0 <= layout.nbytes - end < 256 and layout.nbytes % 256 == 0


def test_weights_have_logical_sizes_and_stored_data():
    weights = store_of(LAYER).layer(0)
    assert weights.plain["norm"].shape == (9,)
    matrix = weights.matrix["qkv"]
    assert (matrix.rows, matrix.columns, matrix.data.shape) == (33, 9, (2, 9, 32))
    experts = weights.experts["experts"]
    assert (experts.experts, experts.width, experts.hidden) == (3, 5, 9)
    assert experts.gate_up.shape == (3, 1, 9, 2, 32) and experts.down.shape == (3, 1, 5, 32)


def test_slabs_fill_the_arena_without_overlap():
    store = store_of(LAYER, LAYER[:2], LAYER, dtype=torch.float32)
    slabs = [store.resident_slab, store.slab(0), store.slab(1), store.slab(2)]
    assert slabs[0].begin == 0 and slabs[-1].end == store.nbytes
    assert all(a.end == b.begin for a, b in itertools.pairwise(slabs))
    for value, slab in enumerate(slabs, start=1):
        for storage in store.storages(slab):
            storage.fill_(value)
    assert [store.layer(i).plain["norm"].unique().item() for i in range(3)] == [2, 3, 4]
    assert [store.layer(i).matrix["qkv"].data.unique().item() for i in range(3)] == [2, 3, 4]
    assert store.resident.plain["embedding"].unique().item() == 1
    assert store.arena.view(slabs[2].begin, torch.float32, (9,)).unique().item() == 3


def test_experts_of_one_name_pair_too():
    layout = SlabLayout.of(
        (spec("moe", Form.GATE_UP, 1, 2, 5, 9), spec("moe", Form.DOWN, 1, 9, 5)), PaddedShapes(), torch.bfloat16
    )
    assert list(layout.view(Arena(layout.nbytes), 0).experts) == ["moe"]


@pytest.mark.parametrize(
    "specs",
    [
        LAYER[:3],
        (spec("a", Form.PLAIN, 2), spec("a", Form.PLAIN, 2)),
        (LAYER[2], spec("experts.down", Form.DOWN, 3, 9, 6)),
    ],
)
def test_specs_that_do_not_fit_together_are_our_bug(specs):
    layout = SlabLayout.of(specs, PaddedShapes(), torch.bfloat16)
    with pytest.raises(AssertionError):
        layout.view(Arena(layout.nbytes), 0)
