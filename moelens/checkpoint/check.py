"""Compares what a checkpoint's files hold with what an architecture needs, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from moelens.checkpoint.faults import damaged_tensor, quote
from moelens.checkpoint.safetensors import StoredTensor
from moelens.errors import CheckpointError, UnsupportedModelError
from moelens.models.architecture import Architecture, Piece

_WRONG_CONFIG = "config.json and the weights are of different models, so download both again"
# Tables that some versions of transformers saved beside the weights and that follow from the config.
_DERIVED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
_QUANTISED_DTYPES = ("F8_", "F6_", "F4", "I8", "U8", "I16", "I32")
_QUANTISED_NAMES = (
    *("qweight", "qzeros", "g_idx", "scales", "weight_scale", "weight_scale_inv", "weight_packed", "weight_shape"),
    *("input_scale", "activation_scale", "absmax", "quant_map", "SCB", "_blocks"),
)


def check_tensors(folder: Path, tensors: Mapping[str, StoredTensor], architecture: Architecture) -> None:
    """That every tensor that `architecture` uses is there in its shape and a float dtype, and no other that matters.

    Raises UnsupportedModelError for a quantised checkpoint and CheckpointError for everything else.
    """
    pieces = [
        p for specs in (architecture.resident_tensors, *architecture.layer_tensors) for s in specs for p in s.pieces
    ]
    others = [tensor for name, tensor in tensors.items() if not name.startswith(architecture.ignored)]
    _check_not_quantised(others)
    missing = [piece for piece in pieces if piece.name not in tensors]
    if missing:
        names = len({piece.name for piece in missing})
        raise CheckpointError(
            f"{folder}: tensor {quote(missing[0].name)}: expected shape {list(missing[0].shape)}, found no such tensor"
            f"{f' (nor {names - 1} others of the model)' if names > 1 else ''}: {_WRONG_CONFIG}."
        )
    for piece in pieces:
        _check_piece(piece, tensors[piece.name])
    _check_no_others(others, {piece.name for piece in pieces})


def _check_piece(piece: Piece, tensor: StoredTensor) -> None:
    if tensor.shape != piece.shape:
        expected, found = f"shape {list(piece.shape)}", f"{list(tensor.shape)}"
        raise damaged_tensor(tensor.path, tensor.name, expected, found, _WRONG_CONFIG)
    if tensor.torch_dtype is None:
        remedy = "convert it with transformers' save_pretrained"
        raise damaged_tensor(tensor.path, tensor.name, "dtype BF16, F16 or F32", tensor.dtype, remedy)


def _check_not_quantised(tensors: list[StoredTensor]) -> None:
    """Weights in fewer bits than 16 need their scales applied, which moelens does not do yet."""
    for tensor in tensors:
        if tensor.dtype.startswith(_QUANTISED_DTYPES) or tensor.name.endswith(_QUANTISED_NAMES):
            raise UnsupportedModelError(
                f"{tensor.path}: tensor {quote(tensor.name)} is {tensor.dtype}: the checkpoint is quantised, and "
                "moelens reads BF16, F16 and F32 weights only: use the model's unquantised version."
            )


def _check_no_others(tensors: list[StoredTensor], used: set[str]) -> None:
    """A bias, norm or matrix that the architecture has no use for would be missing from the result."""
    unknown = [t for t in tensors if t.name not in used and not t.name.endswith(_DERIVED)]
    if unknown:
        first = unknown[0]
        found = f"{first.dtype} {list(first.shape)}{f', and {len(unknown) - 1} others' if len(unknown) > 1 else ''}"
        expected = "no such tensor, as the model that config.json describes has no use for it"
        raise damaged_tensor(first.path, first.name, expected, found, _WRONG_CONFIG)
