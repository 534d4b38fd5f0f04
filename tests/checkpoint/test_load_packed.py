"""Loading in small jobs stores the same bytes as packing each tensor whole, with the ops that the engine uses."""

import pytest
import torch
from tiny_checkpoint import HIDDEN, architecture_of, layer_specs, resident_specs, save, tensors_for, wanted, whole

from moelens.checkpoint import jobs
from moelens.checkpoint.load import load_weights
from moelens.models.architecture import Form, TensorSpec
from moelens.ops.native import NativeOps
from moelens.ops.reference import ReferenceOps


def pack_whole(spec, tensors, dtype, storage, ops):
    logical = wanted(spec, tensors, dtype)
    if spec.form is Form.PLAIN:
        storage.copy_(logical)
    elif spec.form is Form.MATRIX:
        ops.pack_matrix(logical, storage)
    for expert in range(spec.shape[0] if spec.form in (Form.GATE_UP, Form.DOWN) else 0):
        if spec.form is Form.GATE_UP:
            ops.pack_gate_up(*logical[expert], storage[expert])
        else:
            ops.pack_down(logical[expert], storage[expert])


def odd_specs():
    """Rows that end inside a panel, an odd width, and a transposed down."""
    yield TensorSpec("m", Form.MATRIX, (131, 33), (whole("ma", 100, 33), whole("mb", 31, 33)))
    rows = [(0, 21), (21, 42)]
    gates = tuple(whole(name, 42, 50, rows=r) for r in rows for name in ("w1", "v1"))
    yield TensorSpec("e.gate_up", Form.GATE_UP, (2, 2, 21, 50), gates)
    yield TensorSpec(
        "e.down", Form.DOWN, (2, 50, 21), tuple(whole("w2", 42, 50, rows=r, transposed=True) for r in rows)
    )


@pytest.mark.parametrize("make_ops", [ReferenceOps, lambda: NativeOps(threads=2)], ids=["reference", "native"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_jobs_store_what_whole_tensors_would(tmp_path, monkeypatch, make_ops, dtype):
    ops = make_ops()
    monkeypatch.setattr(jobs, "_JOB_BYTES", 32 * HIDDEN * 2)
    architecture = architecture_of([*resident_specs(), *odd_specs()], [layer_specs(0)], dtype)
    tensors = tensors_for(architecture, torch.bfloat16)
    save(tmp_path / "model.safetensors", tensors)
    store = load_weights(tmp_path, architecture, ops, threads=2)
    for specs, slab in ((architecture.resident_tensors, store.resident_slab), (layer_specs(0), store.slab(0))):
        for spec, storage in zip(specs, store.storages(slab), strict=True):
            expected = torch.zeros_like(storage)
            pack_whole(spec, tensors, dtype, expected, ops)
            assert expected.any() and torch.equal(storage, expected), spec.name
