"""Which file holds which tensor: index and files must exist, agree and stay in the folder, in the right format."""

import json
import random

import pytest
import torch
from tiny_checkpoint import save, save_index, save_sharded

from moelens.checkpoint.index import INDEX, find_tensors
from moelens.errors import CheckpointError, UnsupportedModelError

TENSORS = {name: torch.full((2, 3), float(i)) for i, name in enumerate("abcdef")}


def test_single_file_of_any_name(tmp_path):
    save(tmp_path / "weights-final.safetensors", TENSORS)
    assert find_tensors(tmp_path).keys() == TENSORS.keys()


def test_model_safetensors_goes_before_other_files(tmp_path):
    save(tmp_path / "model.safetensors", TENSORS)
    save(tmp_path / "adapter.safetensors", {"z": torch.zeros(1)})
    assert find_tensors(tmp_path).keys() == TENSORS.keys()


def test_index_of_many_files(tmp_path):
    weight_map = save_sharded(tmp_path, TENSORS, 3)
    save(tmp_path / "consolidated.safetensors", {"z": torch.zeros(1)})  # not in the index: another format's copy
    assert {name: tensor.path.name for name, tensor in find_tensors(tmp_path).items()} == weight_map


def test_index_of_the_single_file(tmp_path):
    save(tmp_path / "model.safetensors", TENSORS)
    save_index(tmp_path, dict.fromkeys(TENSORS, "model.safetensors"))
    assert find_tensors(tmp_path).keys() == TENSORS.keys()


def test_index_with_a_subfolder(tmp_path):
    (tmp_path / "part").mkdir()
    save(tmp_path / "part" / "x.safetensors", TENSORS)
    save_index(tmp_path, dict.fromkeys(TENSORS, "part/x.safetensors"))
    assert find_tensors(tmp_path).keys() == TENSORS.keys()


def test_missing_file_of_the_index(tmp_path):
    save_sharded(tmp_path, TENSORS, 3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    message = r"model-00002-of-00003.safetensors is missing; 1 of the 3 files that .*index.json names are: download"
    with pytest.raises(CheckpointError, match=message):
        find_tensors(tmp_path)


def test_broken_link_in_the_hubs_cache_is_a_missing_file(tmp_path):
    save_sharded(tmp_path, TENSORS, 2)
    file = tmp_path / "model-00001-of-00002.safetensors"
    file.unlink()
    file.symlink_to(tmp_path / "blobs" / "gone")
    with pytest.raises(CheckpointError, match=r"00001-of-00002.safetensors is missing"):
        find_tensors(tmp_path)


@pytest.mark.parametrize(
    "file", ["../other/x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "..\\x.safetensors"]
)
def test_index_that_points_outside_the_folder(tmp_path, file):
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "other").mkdir()
    save(tmp_path / "other" / "x.safetensors", TENSORS)
    save(tmp_path / "x.safetensors", TENSORS)
    save_index(inside, dict.fromkeys(TENSORS, file))
    with pytest.raises(CheckpointError, match=r"index.json: tensor 'a': expected .*found '.*download"):
        find_tensors(inside)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "", 3, None, ["x.safetensors"], "x\0.safetensors"])
def test_index_that_names_no_safetensors_file(tmp_path, file):
    save_index(tmp_path, {"a": file})
    with pytest.raises(CheckpointError, match=r"tensor 'a': expected the name of a .safetensors file, found"):
        find_tensors(tmp_path)


def test_index_that_names_a_tensor_its_file_lacks(tmp_path):
    weight_map = save_sharded(tmp_path, TENSORS, 2)
    save_index(tmp_path, weight_map | {"g": "model-00001-of-00002.safetensors"})
    message = r"00001-of-00002.safetensors: tensor 'g': expected it here, as .* lists it, found no such tensor: .*again"
    with pytest.raises(CheckpointError, match=message):
        find_tensors(tmp_path)


def test_tensor_that_the_index_lacks(tmp_path):
    weight_map = save_sharded(tmp_path, TENSORS, 2)
    del weight_map["c"]
    save_index(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match=r"tensor 'c': expected .* to list it in this file, found not listed"):
        find_tensors(tmp_path)


def test_tensor_in_two_files(tmp_path):
    weight_map = save_sharded(tmp_path, TENSORS, 2)
    save(tmp_path / "model-00001-of-00002.safetensors", TENSORS)
    save_index(tmp_path, weight_map)
    message = r"00001-of-00002.safetensors: tensor 'b': .*lists it in 'model-00002-of-00002.safetensors'"
    with pytest.raises(CheckpointError, match=message):
        find_tensors(tmp_path)


def test_outdated_single_file_beside_an_index(tmp_path):
    save_sharded(tmp_path, TENSORS, 2)
    save(tmp_path / "model.safetensors", TENSORS)
    with pytest.raises(CheckpointError, match=r"holds both model.safetensors and .*delete the one that is outdated"):
        find_tensors(tmp_path)


def test_many_files_without_an_index(tmp_path):
    save_sharded(tmp_path, TENSORS, 2)
    (tmp_path / INDEX).unlink()
    with pytest.raises(CheckpointError, match=r"index.json is missing beside 2 files of weights"):
        find_tensors(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "{}", '{"weight_map": []}', '{"weight_map": {}}', "\xff", "[" * 100_000, "7"]
)
def test_index_that_is_none(tmp_path, text):
    (tmp_path / INDEX).write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"index.json (is not JSON|holds a JSON|has no weight_map)"):
        find_tensors(tmp_path)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("pytorch_model.bin", "as pickle .*unpickling a file can run any code: use .*save_pretrained"),
        ("pytorch_model.bin.index.json", "as pickle"),
        ("pytorch_model-00001-of-00002.bin", "as pickle"),
        ("consolidated.00.pth", "as pickle"),
        ("model.Q4_K_M.gguf", r"as GGUF \(model.Q4_K_M.gguf\), and moelens reads .safetensors only: use"),
    ],
)
def test_other_formats(tmp_path, file, message):
    (tmp_path / file).write_bytes(b"never opened")
    (tmp_path / file).chmod(0)
    with pytest.raises(UnsupportedModelError, match=message):
        find_tensors(tmp_path)


def test_no_weights(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no .safetensors file: download the whole checkpoint"):
        find_tensors(tmp_path)


def test_mutations_of_the_index(tmp_path):
    save_sharded(tmp_path, TENSORS, 3)
    original = (tmp_path / INDEX).read_bytes()
    generator = random.Random(3)
    refused = 0
    for _ in range(300):
        content = bytearray(original)
        for _ in range(generator.randint(1, 4)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        (tmp_path / INDEX).write_bytes(content)
        try:
            found = find_tensors(tmp_path)
        except (CheckpointError, UnsupportedModelError):
            refused += 1
        else:
            assert found.keys() == json.loads(content)["weight_map"].keys() == TENSORS.keys()
    assert refused > 200
