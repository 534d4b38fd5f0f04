"""Typed reading of a checkpoint's config.json, in which no key that changes the result goes unread."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch

from moelens.errors import ConfigError, UnsupportedModelError
from moelens.ops.interface import Activation

_T = TypeVar("_T", int, float, str)

_log = logging.getLogger(__name__)

_RESTORE = "restore the config.json that the checkpoint was published with"

_ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
}

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

# Keys that some family of models gives a meaning to, and the values that change nothing: a family that does not read
# one of them does not compute what any other value asks for.
_CHANGES_NOTHING: Mapping[str, tuple[object, ...]] = {
    "alibi": (False, None),
    "attention_bias": (False, None),
    "attention_chunk_size": (None,),
    "attention_multiplier": (None,),
    "attention_sinks": (False, None),
    "attn_logit_softcapping": (None,),
    "clip_qkv": (None,),
    "decoder_sparse_step": (1, None),
    "embedding_multiplier": (1, None),
    "final_logit_softcapping": (None,),
    "first_k_dense_replace": (0, None),
    "is_encoder_decoder": (False, None),
    "layer_types": ([], None),  # as every "full_attention" is left out
    "lm_head_bias": (False, None),
    "logit_scale": (1, None),
    "logits_scaling": (1, None),
    "mlp_bias": (False, None),
    "mlp_only_layers": ([], None),
    "moe_router_logit_softcapping": (0, None),
    "n_group": (1, None),
    "n_shared_experts": (0, None),
    "no_rope_layers": ([], None),
    "num_shared_experts": (0, None),
    "partial_rotary_factor": (1, None),
    "qk_layernorm": (False, None),
    "qkv_bias": (False, None),
    "residual_multiplier": (1, None),
    "rope_interleave": (False, None),
    "routed_scaling_factor": (1, None),
    "scoring_func": ("softmax", None),
    "shared_expert_intermediate_size": (0, None),
    "shared_intermediate_size": (0, None),
    "sliding_window": (0, None),
    "swiglu_limit": (None,),
    "tie_word_embeddings": (False, None),
    "uniform_expert_assignment": (False, None),
    "use_bias": (False, None),
    "use_qk_norm": (False, None),
    "use_sliding_window": (False, None),
}


class RawConfig:
    """The values of a config.json (or of a section of one, which `where` then names), read key by key.

    What is absent or of a wrong type raises ConfigError; what moelens doesn't compute, UnsupportedModelError. A key
    whose value is null counts as absent. `check_all_read` is for the end.
    """

    def __init__(self, values: Mapping[str, object], where: str = "config.json") -> None:
        self.where = where
        self._values = values
        self._read: set[str] = set()

    def value(self, key: str) -> object:
        """What stands at `key`; None when nothing does."""
        self._read.add(key)
        return self._values.get(key)

    def has(self, key: str) -> bool:
        """Whether `key` is there, if only as null."""
        return key in self._values

    def size(self, *keys: str, default: int | None = None) -> int:
        """A positive integer, at the first of `keys` that is there."""
        found = self.optional_size(*keys)
        return self._or_default(found, " or ".join(keys), default)

    def optional_size(self, *keys: str) -> int | None:
        """A positive integer, or None."""
        for key in keys:
            value = self.value(key)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise self.wrong(key, "a positive integer", value)
            return value
        return None

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        return self._or_default(self.optional_number(key), key, default)

    def optional_number(self, key: str) -> float | None:
        """A finite number, or None."""
        value = self.value(key)
        if value is None:
            return None
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise self.wrong(key, "a number", value)
        return float(value)

    def positive(self, key: str, default: float | None = None) -> float:
        """A number above zero."""
        number = self.number(key, default)
        if number <= 0:
            raise self.wrong(key, "a number above 0", number)
        return number

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.value(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false", value)
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self.value(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, "a string", value)
        return self._or_default(value, key, default)

    def integers(self, key: str) -> tuple[int, ...]:
        """One integer or a list of them; empty when absent."""
        value = self.value(key)
        if value is None:
            return ()
        found = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in found):
            raise self.wrong(key, "an integer or a list of integers", value)
        return tuple(found)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty when absent."""
        value = self.value(key)
        if value is None:
            return ()
        if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, str) for v in value):
            raise self.wrong(key, "a list of strings", value)
        return tuple(value)

    def section(self, key: str) -> RawConfig:
        """An object inside this one; empty when absent."""
        value = self.value(key)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise self.wrong(key, "an object", value)
        return RawConfig(value, f"{self.where}: {key}")

    def activation(self, key: str, default: str = "silu") -> Activation:
        """The activation function that `key` names."""
        name = self.text(key, default)
        if name not in _ACTIVATIONS:
            raise self.unsupported(key, name, f"moelens has {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[name]

    def dtype(self, wanted: torch.dtype | None) -> torch.dtype:
        """`wanted`, or else the dtype of the weights, in which float16 becomes bfloat16."""
        if wanted is not None:
            if wanted not in (torch.bfloat16, torch.float32):
                raise ConfigError(f"dtype must be torch.bfloat16 or torch.float32, got {wanted}: use one of these.")
            return wanted
        key = "dtype" if self.value("dtype") is not None else "torch_dtype"
        if self.value(key) is None:
            raise ConfigError(f'{self.where}: neither "dtype" nor "torch_dtype" is there: pass dtype="bfloat16".')
        name = self.text(key).removeprefix("torch.")
        if name not in _DTYPES:
            raise self.unsupported(key, name, 'pass dtype="bfloat16" or dtype="float32"')
        if name == "float16":
            _log.info('%s: %s is "float16": moelens runs it in bfloat16.', self.where, key)
            return torch.bfloat16
        return _DTYPES[name]

    def check_all_read(self) -> None:
        """That no key was left unread which would change the result."""
        for key, neutral in _CHANGES_NOTHING.items():
            value = self._values.get(key)
            if key == "layer_types" and isinstance(value, list):
                value = [kind for kind in value if kind != "full_attention"]
            if key not in self._read and not any(value == one for one in neutral):
                raise self.unsupported(key, value, "moelens does not compute this for this model")

    def check_only_read(self) -> None:
        """That no key at all was left unread."""
        for key, value in self._values.items():
            if key not in self._read and value is not None:
                raise self.unsupported(key, value, "moelens does not know what it means here")

    def wrong(self, key: str, expected: str, found: object) -> ConfigError:
        """The error that says what `key` should have been."""
        return ConfigError(f'{self.where}: "{key}": expected {expected}, found {found!r}: {_RESTORE}.')

    def unsupported(self, key: str, found: object, reason: str) -> UnsupportedModelError:
        """The error that says why `key`'s value can't be run."""
        return UnsupportedModelError(
            f'{self.where}: "{key}" is {found!r}: {reason}: use a checkpoint of this family without it.'
        )

    def _or_default(self, found: _T | None, key: str, default: _T | None) -> _T:
        value = default if found is None else found
        if value is None:
            raise ConfigError(f'{self.where}: "{key}" is missing: {_RESTORE}.')
        return value
