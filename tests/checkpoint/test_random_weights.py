"""Random weights: the same for a seed whatever the threads, of an initialiser's size, different everywhere."""

import itertools

import pytest
import torch
from tiny_checkpoint import HIDDEN, PanelOps, architecture_of, tiny_architecture, whole

from moelens.checkpoint.jobs import weight_bytes
from moelens.checkpoint.random import random_weights
from moelens.models.architecture import Form, TensorSpec


def content(store):
    return store.arena.view(0, torch.uint8, (store.nbytes,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_same_for_a_seed_and_only_for_it(dtype):
    architecture = tiny_architecture(dtype)
    first, again, other = (
        random_weights(architecture, PanelOps(), seed=seed, threads=threads)
        for seed, threads in [(1, 1), (1, 3), (2, 1)]
    )
    assert torch.equal(content(first), content(again))
    assert not torch.equal(content(first), content(other))


def large_architecture(dtype):
    """Tensors larger than a job, and than the pool of random numbers."""
    vectors = [TensorSpec("a", Form.PLAIN, (64,), (whole("model.norm.weight", 64),))]
    vectors += [TensorSpec("b", Form.PLAIN, (64,), (whole("q_proj.bias", 64),))]
    table = TensorSpec("t", Form.PLAIN, (3000, 1024), (whole("t", 3000, 1024),))
    experts = [
        TensorSpec("e", Form.GATE_UP, (1, 2, 1500, 1504), (whole("g", 1500, 1504), whole("u", 1500, 1504))),
        TensorSpec("e", Form.DOWN, (1, 1504, 1500), (whole("d", 1504, 1500),)),
    ]
    return architecture_of([*vectors, table, *experts], [], dtype)


def test_values_are_an_initialisers():
    architecture = large_architecture(torch.bfloat16)
    done = []
    store = random_weights(architecture, PanelOps(), seed=0, threads=2, progress=done.append)
    assert sum(done) == weight_bytes(architecture)
    weights = store.resident
    assert torch.equal(weights.plain["a"], torch.ones(64, dtype=torch.bfloat16))
    assert 0.01 < weights.plain["b"].float().std() < 0.03
    table = weights.plain["t"].float()
    assert table.isfinite().all()
    assert abs(table.std().item() - 0.02) < 1e-3 and abs(table.mean().item()) < 1e-3
    assert torch.unique(table, dim=0).shape[0] == table.shape[0]
    gate_up = weights.experts["e"].gate_up.float()
    assert not torch.equal(gate_up[0, 0], gate_up[0, 1]) and abs(gate_up.std().item() - 0.02) < 2e-3


def test_no_two_matrices_are_alike():
    store = random_weights(tiny_architecture(), PanelOps(), seed=0, threads=1)
    gates = [expert for layer in range(2) for expert in store.layer(layer).experts["experts"].gate_up]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(gates, 2))
    assert store.layer(0).plain["norm"].tolist() == [1.0] * HIDDEN
