"""Loading: every form, layout and dtype bit for bit, and every fault an error that says what to do."""

import errno
import os
import shutil
import threading

import pytest
import torch
from tiny_checkpoint import (
    EXPERTS,
    HIDDEN,
    WIDTH,
    PanelOps,
    architecture_of,
    assert_stored,
    header_and_data,
    save,
    save_sharded,
    tensors_for,
    tiny_architecture,
    whole,
    write_file,
)

from moelens.checkpoint import jobs, reading
from moelens.checkpoint.jobs import weight_bytes
from moelens.checkpoint.load import load_weights
from moelens.checkpoint.reading import affordable_threads
from moelens.errors import CapacityError, CheckpointError, UnsupportedModelError
from moelens.models.architecture import Form, TensorSpec


@pytest.fixture
def tiny():
    return tiny_architecture()


@pytest.fixture
def small_jobs(monkeypatch):
    """Jobs and blocks so small that tiny tensors take many."""
    monkeypatch.setattr(jobs, "_JOB_BYTES", 32 * HIDDEN * 2)
    monkeypatch.setattr(reading, "_BLOCK_BYTES", 1024)
    monkeypatch.setattr(reading, "_SLICE", 100)


def load(folder, architecture, threads=2, **options):
    return load_weights(folder, architecture, PanelOps(), threads=threads, **options)


@pytest.mark.parametrize("threads", [1, 3])
def test_single_file(tmp_path, tiny, threads):
    tensors = tensors_for(tiny)
    save(tmp_path / "model.safetensors", tensors)
    assert_stored(load(tmp_path, tiny, threads), tiny, tensors)


@pytest.mark.parametrize("shards", [1, 4])
def test_shards(tmp_path, tiny, shards):
    tensors = tensors_for(tiny)
    save_sharded(tmp_path, tensors, shards)
    assert_stored(load(tmp_path, tiny), tiny, tensors)


def test_many_small_jobs(tmp_path, tiny, small_jobs):
    tensors = tensors_for(tiny)
    save(tmp_path / "weights.safetensors", tensors)
    assert_stored(load(tmp_path, tiny), tiny, tensors)


def test_files_behind_links_as_in_the_hubs_cache(tmp_path, tiny):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    tensors = tensors_for(tiny)
    save_sharded(blobs, tensors, 2)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(os.path.relpath(file, snapshot))
    (tmp_path / "link").symlink_to(snapshot)
    assert_stored(load(tmp_path / "link", tiny), tiny, tensors)


@pytest.mark.parametrize("model", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("file", [torch.bfloat16, torch.float32, torch.float16])
def test_dtypes_are_converted_to_the_models(tmp_path, small_jobs, file, model):
    architecture = tiny_architecture(model)
    tensors = tensors_for(architecture, file)
    save(tmp_path / "model.safetensors", tensors)
    store = load(tmp_path, architecture)
    assert store.layer(1).plain["qkv_bias"].dtype == model
    assert_stored(store, architecture, tensors)


def test_dtypes_may_differ_within_a_file(tmp_path, tiny):
    tensors = tensors_for(tiny)
    tensors["layers.0.norm.weight"] = torch.randn(HIDDEN)
    tensors["layers.1.attention.k.weight"] = tensors["layers.1.attention.k.weight"].to(torch.float16)
    save(tmp_path / "model.safetensors", tensors)
    assert_stored(load(tmp_path, tiny), tiny, tensors)


def fused_specs():
    """Granite's experts, fused in three dimensions, and DBRX's, in two with down transposed."""
    e, i, h = EXPERTS, WIDTH, HIDDEN
    up_rows = [(a, a + i) for a in range(0, 2 * e * i, i)]
    yield TensorSpec(
        "a.gate_up", Form.GATE_UP, (e, 2, i, h), tuple(whole("in", e, 2 * i, h, rows=rows) for rows in up_rows)
    )
    yield TensorSpec(
        "a.down", Form.DOWN, (e, h, i), tuple(whole("out", e, h, i, rows=(x * h, x * h + h)) for x in range(e))
    )
    rows = [(x * i, x * i + i) for x in range(e)]
    yield TensorSpec(
        "b.gate_up",
        Form.GATE_UP,
        (e, 2, i, h),
        tuple(whole(name, e * i, h, rows=r) for r in rows for name in ("w1", "v1")),
    )
    yield TensorSpec(
        "b.down", Form.DOWN, (e, h, i), tuple(whole("w2", e * i, h, rows=r, transposed=True) for r in rows)
    )


def transposed_specs():
    yield TensorSpec("t", Form.MATRIX, (50, 30), (whole("ta", 30, 50, transposed=True),))
    yield TensorSpec(
        "u", Form.MATRIX, (70, 30), (whole("ua", 20, 30), whole("ub", 60, 50, rows=(10, 40), transposed=True))
    )
    yield TensorSpec("p", Form.PLAIN, (7, 6), (whole("pa", 2, 6), whole("pb", 6, 5, transposed=True)))
    yield TensorSpec("v", Form.PLAIN, (8,), (whole("va", 10, rows=(1, 6)), whole("vb", 3)))
    yield TensorSpec("g", Form.GATE_UP, (1, 2, 5, 9), (whole("ga", 9, 5, transposed=True), whole("gb", 5, 9)))
    yield TensorSpec("g", Form.DOWN, (1, 9, 5), (whole("gc", 9, 5),))


def row_specs():
    """Row ranges whose joints fall beside the multiples of 32 at which jobs are cut."""
    pieces = (whole("ra", 100, 30, rows=(3, 50)), whole("ra", 100, 30, rows=(90, 91)), whole("rb", 4, 20, 30))
    yield TensorSpec("r", Form.MATRIX, (128, 30), pieces)
    yield TensorSpec("empty", Form.MATRIX, (20, 30), (whole("rb", 4, 20, 30, rows=(5, 5)), whole("rc", 20, 30)))


@pytest.mark.parametrize("specs", [fused_specs, transposed_specs, row_specs])
@pytest.mark.parametrize("file", [torch.bfloat16, torch.float32])
def test_pieces_of_every_form(tmp_path, small_jobs, specs, file):
    architecture = architecture_of(list(specs()), [])
    tensors = tensors_for(architecture, file)
    save(tmp_path / "model.safetensors", tensors)
    assert_stored(load(tmp_path, architecture), architecture, tensors)


@pytest.mark.parametrize(
    ("form", "shape", "pieces"),
    [
        (Form.PLAIN, (5, 3), [whole("a", 4, 3)]),
        (Form.MATRIX, (5, 3), [whole("a", 4, 3)]),
        (Form.MATRIX, (5, 3), [whole("a", 5, 4)]),
        (Form.MATRIX, (5, 3), [whole("a", 5, 3, rows=(1, 6))]),
        (Form.MATRIX, (3, 5), [whole("a", 3, 5, transposed=True)]),
        (Form.DOWN, (2, 5, 3), [whole("a", 5, 3)]),
        (Form.DOWN, (1, 5, 3), [whole("a", 4, 3)]),
        (Form.GATE_UP, (1, 2, 5, 3), [whole("a", 10, 3)]),
        (Form.GATE_UP, (1, 2, 5, 3), [whole("a", 5, 3), whole("b", 4, 3)]),
    ],
)
def test_pieces_that_do_not_make_up_the_tensor_are_our_bug(form, shape, pieces):
    spec = TensorSpec("x", form, shape, tuple(pieces))
    ops = PanelOps()
    storage = torch.zeros(2, 2, 5, 32) if form is not Form.PLAIN else torch.zeros(shape)
    with pytest.raises(AssertionError):
        for job in jobs.cut_tensor(spec, storage, ops):
            if job.pack:
                job.pack(torch.zeros(job.elements))


def test_progress_adds_up_and_runs_in_the_callers_thread(tmp_path, tiny):
    save(tmp_path / "model.safetensors", tensors_for(tiny, torch.float32))
    calls = []
    load(tmp_path, tiny, progress=lambda nbytes: calls.append((nbytes, threading.current_thread())))
    assert sum(nbytes for nbytes, _ in calls) == weight_bytes(tiny)
    assert {thread for _, thread in calls} == {threading.main_thread()}


def test_an_interrupt_during_progress_ends_the_load(tmp_path, tiny):
    save(tmp_path / "model.safetensors", tensors_for(tiny))
    calls = []

    def interrupt(nbytes):
        calls.append(nbytes)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(tmp_path, tiny, progress=interrupt)
    assert len(calls) == 1


def faults(tmp_path, tiny, change, message, error=CheckpointError):
    """Loading fails as it should after `change` edited the tensors."""
    tensors = tensors_for(tiny)
    change(tensors)
    save(tmp_path / "model.safetensors", tensors)
    with pytest.raises(error, match=message):
        load(tmp_path, tiny)


def test_missing_tensor(tmp_path, tiny):
    def change(tensors):
        del tensors["layers.1.experts.2.up"]

    message = r"'layers.1.experts.2.up': expected shape \[24, 40\], found no such tensor: config.json and .*download"
    faults(tmp_path, tiny, change, message)


def test_many_missing_tensors_are_counted(tmp_path, tiny):
    def change(tensors):
        for name in [name for name in tensors if name.startswith("layers.1")]:
            del tensors[name]

    faults(tmp_path, tiny, change, r"'layers.1.norm.weight'.*\(nor 15 others of the model\)")


def test_wrong_shape(tmp_path, tiny):
    def change(tensors):
        tensors["layers.0.attention.q.weight"] = torch.zeros(36, 41)

    message = r"model.safetensors: tensor 'layers.0.attention.q.weight': expected shape \[36, 40\], found \[36, 41\]"
    faults(tmp_path, tiny, change, message)


def test_same_size_in_another_shape(tmp_path, tiny):
    def change(tensors):
        tensors["layers.0.experts.0.down"] = tensors["layers.0.experts.0.down"].t()

    faults(tmp_path, tiny, change, r"expected shape \[40, 24\], found \[24, 40\]")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("layers.0.experts.1.gate", torch.uint8), ("layers.0.experts.1.gate", torch.int32), ("extra_scales", None)],
)
def test_quantised(tmp_path, tiny, name, dtype):
    def change(tensors):
        tensors[name] = torch.ones(WIDTH, HIDDEN).to(dtype or torch.float32)

    faults(tmp_path, tiny, change, f"tensor '{name}'.*quantised.*unquantised version", UnsupportedModelError)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_eight_bit_floats(tmp_path, tiny, dtype):
    tensors = tensors_for(tiny) | {"layers.0.experts.0.gate": torch.zeros(WIDTH, HIDDEN, dtype=torch.uint8)}
    header, data = header_and_data(tensors)
    header["layers.0.experts.0.gate"]["dtype"] = dtype
    write_file(tmp_path / "model.safetensors", header, data)
    with pytest.raises(UnsupportedModelError, match=f"'layers.0.experts.0.gate' is {dtype}"):
        load(tmp_path, tiny)


def test_other_dtype(tmp_path, tiny):
    header, data = header_and_data(tensors_for(tiny) | {"layers.0.norm.weight": torch.zeros(2 * HIDDEN)})
    header["layers.0.norm.weight"] |= {"dtype": "F64", "shape": [HIDDEN]}
    write_file(tmp_path / "model.safetensors", header, data)
    with pytest.raises(CheckpointError, match="expected dtype BF16, F16 or F32, found F64: convert"):
        load(tmp_path, tiny)


@pytest.mark.parametrize("name", ["layers.0.attention.o.bias", "layers.7.norm.weight", "score.weight"])
def test_a_tensor_that_the_model_would_miss(tmp_path, tiny, name):
    def change(tensors):
        tensors[name] = torch.zeros(3)

    faults(tmp_path, tiny, change, rf"'{name}': expected no such tensor.*found F32 \[3\]")


def test_derived_and_ignored_tensors_are_left(tmp_path):
    architecture = tiny_architecture(ignored=("layers.2.",))
    used = tensors_for(architecture)
    extra = {"layers.0.rotary_emb.inv_freq": torch.zeros(3), "layers.2.qweight": torch.zeros(4, dtype=torch.int32)}
    save(tmp_path / "model.safetensors", used | extra)
    assert_stored(load(tmp_path, architecture), architecture, used)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["embed.weight", "layers.1.experts.2.down"])
def test_numbers_that_are_not_finite(tmp_path, tiny, name, dtype, value):
    def change(tensors):
        tensors[name] = tensors[name].to(dtype)
        tensors[name][-1, -1] = value

    faults(tmp_path, tiny, change, rf"tensor '{name}': expected finite numbers, found infinity or NaN")


def test_the_largest_finite_numbers_are_loaded(tmp_path, tiny):
    tensors = tensors_for(tiny)
    largest = torch.finfo(torch.bfloat16).max
    tensors["embed.weight"][0, 0], tensors["embed.weight"][0, 1] = largest, -largest
    save(tmp_path / "model.safetensors", tensors)
    assert_stored(load(tmp_path, tiny), tiny, tensors)


def test_a_number_too_large_for_the_models_dtype(tmp_path):
    architecture = tiny_architecture(torch.float16)
    tensors = tensors_for(architecture, torch.float32)
    tensors["embed.weight"][0, 0] = 1e5
    save(tmp_path / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"infinity or NaN \(as float16\)"):
        load(tmp_path, architecture)


def test_a_file_that_shrinks_after_its_header_was_read(tmp_path, tiny, monkeypatch):
    tensors = tensors_for(tiny)
    path = tmp_path / "model.safetensors"
    save(path, tensors)
    open_files = reading.WeightReader.__init__

    def shrink_first(*args):
        os.truncate(path, path.stat().st_size - 7)
        open_files(*args)

    monkeypatch.setattr(reading.WeightReader, "__init__", shrink_first)
    with pytest.raises(CheckpointError, match=r"expected data up to byte \d+, found the file's end.*truncated"):
        load(tmp_path, tiny)


def test_a_file_that_vanishes_after_its_header_was_read(tmp_path, tiny, monkeypatch):
    save(tmp_path / "model.safetensors", tensors_for(tiny))
    open_files = reading.WeightReader.__init__

    def remove_first(*args):
        shutil.rmtree(tmp_path)
        open_files(*args)

    monkeypatch.setattr(reading.WeightReader, "__init__", remove_first)
    with pytest.raises(CheckpointError, match="can't be opened"):
        load(tmp_path, tiny)


def test_read_errors_and_short_reads(tmp_path, tiny, monkeypatch):
    tensors = tensors_for(tiny)
    save(tmp_path / "model.safetensors", tensors)
    whole_read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, at: whole_read(file, [buffers[0][:33]], at))
    assert_stored(load(tmp_path, tiny), tiny, tensors)

    def fail(*args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(CheckpointError, match=r"model.safetensors: tensor '.*a read error at byte .*check the disk"):
        load(tmp_path, tiny)


def test_files_are_closed_also_after_a_fault(tmp_path, tiny):
    tensors = tensors_for(tiny)
    tensors["embed.weight"][0, 0] = float("nan")
    save_sharded(tmp_path, tensors, 3)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CheckpointError):
        load(tmp_path, tiny)
    assert len(os.listdir("/proc/self/fd")) == before


def test_weights_that_do_not_fit_are_refused_before_any_is_read(tmp_path, tiny, monkeypatch):
    save(tmp_path / "model.safetensors", tensors_for(tiny))
    monkeypatch.setattr("moelens.memory.arena.available_bytes", lambda: 1000)
    monkeypatch.setattr(os, "preadv", None)
    with pytest.raises(CapacityError, match=r"the model's weights .* is available"):
        load(tmp_path, tiny)


@pytest.mark.parametrize(
    ("weight_bytes", "scratch_bytes", "threads"),
    [(10**9, 10**6, 184), (10**9, 10**8, 1), (0, 0, 1 << 27), (10**9, 10**12, 1), (280 * 10**9, 400 * 10**6, 35)],
)
def test_threads_that_the_scratch_allows(weight_bytes, scratch_bytes, threads):
    assert affordable_threads(weight_bytes, scratch_bytes) == threads
