"""An LLM over weights that processes share gives the tokens of one with its own."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_config import CONFIG

from moelens import LLM, ConfigError, SamplingParams
from moelens.models.registry import build


@pytest.fixture
def folder(byte_tokenizer_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model"
    shutil.copytree(byte_tokenizer_folder, path)
    (path / "config.json").write_text(json.dumps(CONFIG))
    architecture = build(CONFIG, None)
    generator = torch.Generator().manual_seed(0)
    specs = (architecture.resident_tensors, *architecture.layer_tensors)
    pieces = [piece for tensors in specs for spec in tensors for piece in spec.pieces]
    tensors = {piece.name: torch.randn(piece.shape, generator=generator) for piece in pieces}
    save_file(tensors, path / "model.safetensors")
    return path


def generate(folder: Path, **options: object) -> list[list[int]]:
    llm = LLM(folder, num_threads=1, use_tqdm_on_load=False, **options)  # type: ignore[arg-type]
    params = SamplingParams(max_tokens=12, temperature=0.8, seed=1, ignore_eos=True)
    return [list(output.outputs[0].token_ids) for output in llm.generate(["a", "bc"], params, use_tqdm=False)]


def test_tokens_are_those_of_private_weights(folder: Path, tmp_path: Path) -> None:
    expected = generate(folder)
    assert generate(folder, shared_weights_dir=tmp_path / "packed") == expected
    (folder / "model.safetensors").rename(tmp_path / "kept")
    shutil.copy2(tmp_path / "kept", folder / "model.safetensors")
    before = [path.stat().st_mtime_ns for path in (tmp_path / "packed").glob("*.weights")]
    assert generate(folder, shared_weights_dir=tmp_path / "packed") == expected
    assert [path.stat().st_mtime_ns for path in (tmp_path / "packed").glob("*.weights")] == before
    os.utime(folder / "model.safetensors", (1, 1))
    assert generate(folder, shared_weights_dir=tmp_path / "packed") == expected
    assert [path.stat().st_mtime_ns for path in (tmp_path / "packed").glob("*.weights")] != before


def test_random_weights_are_not_shared(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shared_weights_dir is for a checkpoint's weights"):
        LLM(folder, load_format="dummy", shared_weights_dir=tmp_path)


def test_a_gpu_has_pinned_weights_of_its_own(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"shared_weights_dir with device='cuda:1' is not supported: .*pinn"):
        LLM(folder, device="cuda:1", shared_weights_dir=tmp_path)
