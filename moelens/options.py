"""What the user asked of the engine: the arguments of `LLM` that reach it, checked."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from moelens.devices import CpuDevice, CudaDevice, parse_device
from moelens.errors import ConfigError
from moelens.models.config import Quantization
from moelens.plan import KEYS_AT_ONCE, Plan, Streaming

DTYPES = ("auto", "bfloat16", "float32")
QUANTIZATIONS = tuple(one.value for one in Quantization)
LOAD_FORMATS = ("auto", "safetensors", "dummy")


@dataclass(frozen=True)
class EngineOptions:
    """None stands for "to be chosen" throughout; sizes are in tokens, requests or bytes as the names say.

    `dtype` is what weights, activations and cache are computed in ("auto": the checkpoint's own). `quantization` "int8"
    keeps the weights of large products as 8-bit whole numbers, made as they are loaded. `load_format`
    "dummy" makes random weights from the config alone. `shared_weights_dir` is where processes share one copy of the
    weights (None: each has its own). Of `cpu_memory_bytes`, weights take `cpu_weights_memory_bytes` at most (None: all
    of them if they fit beside a cache); experts beyond are read from the files in each step. The cache is of blocks of
    `block_size` tokens. `parts`, `ring_layers`, `load_chunks`, `resident_layers` and `experts_on_host` are those of a
    `Plan` for a device. `plan` fixes everything that is otherwise chosen. `hf_overrides` replaces entries of
    config.json.

    Raises ConfigError for a value that can't be.
    """

    model: str
    dtype: str = "auto"
    seed: int = 0
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_memory_bytes: int | None = None
    cpu_memory_bytes: int | None = None
    cpu_weights_memory_bytes: int | None = None
    num_threads: int | None = None
    enable_prefix_caching: bool = True
    device: str = "auto"
    load_format: str = "auto"
    quantization: str | None = None
    revision: str | None = None
    hf_token: str | bool | None = None
    hf_overrides: Mapping[str, Any] | None = None
    download_dir: str | None = None
    shared_weights_dir: str | None = None
    gpu_memory_utilization: float | None = None
    gpu_memory_bytes: int | None = None
    block_size: int | None = None
    parts: int | None = None
    ring_layers: int | None = None
    load_chunks: int | None = None
    resident_layers: int | None = None
    experts_on_host: bool | None = None
    plan: Plan | None = None

    def __post_init__(self) -> None:
        _require_choice("dtype", self.dtype, DTYPES, "moelens computes in bfloat16 or float32")
        device = parse_device(self.device)
        if self.gpu_memory_bytes is not None and not isinstance(device, CudaDevice):
            raise ConfigError(f"gpu_memory_bytes is for device='cuda', and device is {self.device!r}: leave it out.")
        self._check_quantization()
        _require_choice("load_format", self.load_format, LOAD_FORMATS, "weights are read from safetensors files only")
        _require_whole("seed", self.seed, None)
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "num_threads"):
            _require_whole(name, getattr(self, name), 1)
        for name in ("kv_cache_memory_bytes", "cpu_memory_bytes", "cpu_weights_memory_bytes", "gpu_memory_bytes"):
            _require_whole(name, getattr(self, name), 1)
        self._check_block_size()
        self._check_streaming()
        if self.hf_overrides is not None and not isinstance(self.hf_overrides, Mapping):
            raise ConfigError(
                f"hf_overrides must be a dict of entries of config.json, got {type(self.hf_overrides).__name__}."
            )
        self._check_sharing()
        self._check_reading()
        if self.plan is not None and (given := self._fixed_by_plan()):
            raise ConfigError(f"{', '.join(given)} can't be given together with plan, which fixes it: leave one out.")
        if self.max_num_batched_tokens is not None and self.max_num_batched_tokens < (self.max_num_seqs or 1):
            raise ConfigError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be greater than or equal to max_num_seqs "
                f"({self.max_num_seqs}): every request of a step takes a row."
            )

    def _check_quantization(self) -> None:
        if self.quantization is None:
            return
        reason = "weights are quantised by moelens itself as it loads them"
        _require_choice("quantization", self.quantization, QUANTIZATIONS, f"{reason}, leave it out for none")
        if isinstance(parse_device(self.device), CudaDevice):
            raise ConfigError(
                f"quantization={self.quantization!r} with device={self.device!r} is not supported: there are int8 "
                "kernels for CPUs only. Leave one of them out."
            )

    def _check_sharing(self) -> None:
        if self.shared_weights_dir is None:
            return
        if self.load_format == "dummy":
            raise ConfigError("shared_weights_dir is for a checkpoint's weights, and load_format='dummy' has none.")
        if isinstance(parse_device(self.device), CudaDevice):
            raise ConfigError(
                f"shared_weights_dir with device={self.device!r} is not supported: a GPU copies from pinned memory, "
                "and pinning would give each process pages of its own. Leave one of them out."
            )

    def _check_block_size(self) -> None:
        _require_whole("block_size", self.block_size, 1)
        if self.block_size is not None and self.block_size % KEYS_AT_ONCE:
            raise ConfigError(
                f"block_size must be a multiple of {KEYS_AT_ONCE}, got {self.block_size}: the kernels attend to so "
                "many keys of a block at once. Round it up, or leave it out."
            )

    def _check_streaming(self) -> None:
        for name, least in (("parts", 1), ("ring_layers", 2), ("load_chunks", 1), ("resident_layers", 0)):
            _require_whole(name, getattr(self, name), least)
        if not isinstance(self.experts_on_host, bool | None):
            raise ConfigError(f"experts_on_host must be True or False, got {self.experts_on_host!r}.")
        given = list(Streaming.of(self).fixed)
        if given and isinstance(parse_device(self.device), CpuDevice):
            raise ConfigError(
                f"{', '.join(given)} can't be given with device={self.device!r}: weights stream to a device "
                "only. Leave it out, or use device='cuda'."
            )

    def fixed_limits(self) -> frozenset[str]:
        """The limits of steps, by their names in a plan, that the user fixed."""
        if self.plan is not None:
            return frozenset(("max_requests", "step_tokens"))
        given = {"max_requests": self.max_num_seqs, "step_tokens": self.max_num_batched_tokens}
        return frozenset(name for name, value in given.items() if value is not None)

    def _check_reading(self) -> None:
        if self.cpu_weights_memory_bytes is None:
            return
        if self.load_format == "dummy":
            raise ConfigError("cpu_weights_memory_bytes has experts read from files, and load_format='dummy' has none.")
        if self.shared_weights_dir is not None:
            raise ConfigError(
                "cpu_weights_memory_bytes with shared_weights_dir is not supported: the shared file is mapped as a "
                "whole, and the system decides what of it memory holds. Leave one of them out."
            )

    def _fixed_by_plan(self) -> list[str]:
        names = (
            *("max_num_seqs", "max_num_batched_tokens", "num_threads"),
            *("kv_cache_memory_bytes", "cpu_weights_memory_bytes"),
            *("block_size", *(field.name for field in fields(Streaming))),
        )
        return [name for name in names if getattr(self, name) is not None]


def _require_choice(name: str, value: object, choices: tuple[str, ...], reason: str) -> None:
    if value not in choices:
        *others, last = map(repr, choices)
        allowed = f"{', '.join(others)} or {last}" if others else last
        raise ConfigError(f"{name}={value!r} is not supported: {reason}. Use {allowed}.")


def _require_whole(name: str, value: object, least: int | None) -> None:
    if value is None and least is not None:
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ConfigError(f"{name} must be an integer, got {value!r}.")
    if least is not None and value < least:
        raise ConfigError(f"{name} must be at least {least}, got {value}.")
