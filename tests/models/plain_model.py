"""For tests of model families: tiny random transformers models, and a plain forward pass over the reference ops.

The pieces are put together here from whole tensors, independently of the loader.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from moelens.models.architecture import Architecture, Form, Piece, TensorSpec, Weights
from moelens.models.registry import build
from moelens.ops.interface import AttentionRows, ExpertMatrices, KVLayer, Matrix
from moelens.ops.reference import ReferenceOps

OPS = ReferenceOps()
BLOCK = 8


def random_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A float32 model in which every weight matters: norms away from 1, biases from 0, routers from even."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=random)
            if weight.dim() == 1:
                weight.copy_(0.2 * noise if name.endswith("bias") else 1 + 0.3 * noise)
            else:
                weight.copy_(noise * (2.0 if "embed" in name or "wte" in name else weight.shape[-1] ** -0.5))
    return model


def raw_config(folder: Path) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((folder / "config.json").read_text())
    return loaded


def hub_style(raw: Mapping[str, object]) -> dict[str, object]:
    """The same config as transformers 4 wrote it."""
    old = dict(raw)
    old["torch_dtype"] = old.pop("dtype")
    rope = dict(old.pop("rope_parameters"))  # type: ignore[call-overload]
    old["rope_theta"] = rope.pop("rope_theta")
    old["rope_scaling"] = None if rope == {"rope_type": "default"} else {"type": rope.pop("rope_type"), **rope}
    return old


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def assemble(specs: Sequence[TensorSpec], tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Weights:
    """The weights of one layer, or the resident ones, in the storage of the reference ops: the logical shapes."""
    plain, matrices, halves = {}, {}, {}
    for spec in specs:
        pieces = [_piece(piece, tensors) for piece in spec.pieces]
        data = (torch.cat(pieces) if spec.form in (Form.PLAIN, Form.MATRIX) else torch.stack(pieces)).to(dtype)
        data = data.view(spec.shape)
        if spec.form is Form.PLAIN:
            plain[spec.name] = data
        elif spec.form is Form.MATRIX:
            matrices[spec.name] = Matrix(data, *spec.shape)
        else:
            halves[spec.name] = data
    experts = {}
    for name in {name.rpartition(".")[0] for name in halves}:
        down = halves[f"{name}.down"]
        count, hidden, width = down.shape
        experts[name] = ExpertMatrices(halves[f"{name}.gate_up"], down, count, width, hidden)
    return Weights(plain, matrices, experts)


def _piece(piece: Piece, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    whole = tensors[piece.name]
    assert whole.shape == piece.shape, piece
    if piece.rows is not None:
        whole = whole.reshape(-1, whole.shape[-1])[slice(*piece.rows)]
    return whole.T if piece.transposed else whole


class PlainModel:
    """An architecture with its weights, run on one prompt at a time."""

    def __init__(self, architecture: Architecture, tensors: Mapping[str, torch.Tensor]) -> None:
        dtype = architecture.config.dtype
        self.architecture = architecture
        self.resident = assemble(architecture.resident_tensors, tensors, dtype)
        self.layers = [assemble(specs, tensors, dtype) for specs in architecture.layer_tensors]

    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Logits after every token [T, V]."""
        model, count = self.architecture, len(token_ids)
        blocks = -(-count // BLOCK)
        positions = torch.arange(count, dtype=torch.int32)
        rows = AttentionRows(
            torch.tensor([0, count], dtype=torch.int32),
            torch.tensor([0], dtype=torch.int32),
            torch.arange(blocks, dtype=torch.int32)[None],
        )
        x = model.embed(OPS, self.resident, torch.tensor(token_ids, dtype=torch.int32))
        for index, (layer, weights) in enumerate(zip(model.config.layers, self.layers, strict=True)):
            attention = layer.attention
            shapes = OPS.kv_shapes(blocks, attention.kv_heads, attention.head_dim, BLOCK, x.dtype)
            keys, values = (torch.zeros(shape, dtype=x.dtype) for shape in shapes)
            cache = KVLayer(keys, values, attention.kv_heads, attention.head_dim, BLOCK)
            q, k, v = model.before_attention(OPS, index, weights, x, positions)
            OPS.write_kv(k, v, cache, positions)
            attended = OPS.attention(q, cache, rows, attention.scale, attention.window)
            x = model.after_attention(OPS, index, weights, x, attended)
        return model.logits(OPS, self.resident, x)


def check_against_transformers(config: PretrainedConfig, folder: Path, tokens: int = 21) -> Architecture:
    """That the whole-prompt logits of a random model are those of transformers, and that every tensor of the file is
    used or ignored on purpose."""
    model = random_model(config)
    model.save_pretrained(folder)
    architecture = build(raw_config(folder), torch.float32)
    tensors = read_tensors(folder)
    used = {
        p.name
        for specs in (architecture.resident_tensors, *architecture.layer_tensors)
        for s in specs
        for p in s.pieces
    }
    assert used == {name for name in tensors if not name.startswith(architecture.ignored)}
    ids = torch.randint(config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(input_ids=ids[None]).logits[0]
    found = PlainModel(architecture, tensors).logits(ids.tolist())
    error = (found - expected).norm() / expected.norm()
    assert error < 1e-4, f"relative error {error:.1e}"
    return architecture
