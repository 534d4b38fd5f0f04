"""Which of a model's tensors are kept as 8-bit whole numbers when its weights are quantised as they are loaded."""

from __future__ import annotations

from dataclasses import replace

import torch

from moelens.models.architecture import Architecture, Form, TensorSpec
from moelens.models.config import Quantization

# The products of attention; those of the feed-forward blocks have forms of their own. Router, shared experts' gate and
# head stay as they are: they are small or read once a step, and what they decide is worth more than their bytes.
_MATRICES = ("qkv", "output")


def quantize(architecture: Architecture, quantization: Quantization) -> Architecture:
    """The same model with its large products' weights in int8, one scale a row."""
    assert quantization is Quantization.INT8
    return replace(
        architecture,
        config=replace(architecture.config, quantization=quantization),
        layer_tensors=tuple(tuple(map(_quantized, specs)) for specs in architecture.layer_tensors),
    )


def _quantized(spec: TensorSpec) -> TensorSpec:
    if spec.form is Form.PLAIN or (spec.form is Form.MATRIX and spec.name not in _MATRICES):
        return spec
    return replace(spec, dtype=torch.int8)
