"""Which of vLLM's arguments and methods of `LLM` moelens does not have, and what to use instead."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Callable, Iterable

import torch

from moelens.errors import ConfigError, ValidationError

logger = logging.getLogger(__name__)

_ONE_DEVICE = "one process runs the whole model"
_OWN_OFFLOADING = "what lies where is planned from the memory there is (cpu_memory_bytes, kv_cache_memory_bytes)"
_TEXT_ONLY = "moelens reads and writes text only"
_NO_LORA = "moelens has no LoRA adapters; merge them into the checkpoint"
_NO_SPECULATION = "moelens does not decode speculatively"
_NO_COMPILER = "moelens compiles no graphs at run time"
_NO_STATS = "moelens logs no statistics; see get_metrics()"

_REASONS: dict[str, str] = {
    "runner": "moelens only generates",
    "convert": "moelens only generates",
    "task": "vLLM has removed it, and moelens only generates",
    "pooler_config": "moelens only generates",
    "allowed_local_media_path": _TEXT_ONLY,
    "allowed_media_domains": _TEXT_ONLY,
    "mm_processor_kwargs": _TEXT_ONLY,
    "limit_mm_per_prompt": _TEXT_ONLY,
    "pipeline_parallel_size": _ONE_DEVICE,
    "data_parallel_size": _ONE_DEVICE,
    "enable_expert_parallel": _ONE_DEVICE,
    "distributed_executor_backend": _ONE_DEVICE,
    "disable_custom_all_reduce": _ONE_DEVICE,
    "cpu_offload_gb": _OWN_OFFLOADING,
    "offload_group_size": _OWN_OFFLOADING,
    "offload_num_in_group": _OWN_OFFLOADING,
    "offload_prefetch_step": _OWN_OFFLOADING,
    "offload_params": _OWN_OFFLOADING,
    "kv_offloading_size": _OWN_OFFLOADING,
    "kv_offloading_backend": _OWN_OFFLOADING,
    "swap_space": "vLLM has removed it; the cache lies in host memory (kv_cache_memory_bytes)",
    "enable_return_routed_experts": "moelens does not return routed experts",
    "structured_outputs_config": "there is one backend, llguidance; see SamplingParams.structured_outputs",
    "profiler_config": "see get_metrics() and python -m moelens.bench",
    "attention_config": "there is one attention for each machine",
    "compilation_config": _NO_COMPILER,
    "cuda_graph_sizes": _NO_COMPILER,
    "max_seq_len_to_capture": _NO_COMPILER,
    "quantization_config": "moelens runs unquantised checkpoints, and can quantise them itself: quantization='int8'",
    "logits_processors": "see SamplingParams.logit_bias, allowed_token_ids and bad_words",
    "spec_method": _NO_SPECULATION,
    "spec_model": _NO_SPECULATION,
    "spec_tokens": _NO_SPECULATION,
    "speculative_config": _NO_SPECULATION,
    "num_gpu_blocks_override": "the cache has kv_cache_memory_bytes, in blocks of block_size tokens",
    "enable_chunked_prefill": "prompts longer than a step are always split over steps",
    "max_num_partial_prefills": "prompts longer than a step are always split over steps",
    "scheduling_policy": "requests are served in the order given",
    "async_scheduling": "a step's schedule is made in microseconds",
    "logprobs_mode": "log-probabilities are always the model's own (raw_logprobs)",
    "disable_log_stats": _NO_STATS,
    "disable_log_requests": _NO_STATS,
    "enable_lora": _NO_LORA,
    "max_loras": _NO_LORA,
    "max_lora_rank": _NO_LORA,
    "served_model_name": "moelens has no server",
    "config_format": "the config is read from config.json",
    "code_revision": "code that a checkpoint brings along is never run",
    "model_impl": "moelens has one implementation of each model",
}


ABSENT_METHODS: dict[str, str] = {
    "beam_search": "use generate() with SamplingParams(n=…, temperature=…) and choose by cumulative_logprob",
    "encode": "moelens only generates; use generate()",
    "embed": "moelens only generates; use generate()",
    "classify": "moelens only generates; use generate() with allowed_token_ids and logprobs",
    "score": "moelens only generates; use generate() with prompt_logprobs",
    "reward": "moelens only generates; use generate() with prompt_logprobs",
    "sleep": "delete the LLM and make another when it is needed",
    "wake_up": "delete the LLM and make another when it is needed",
    "start_profile": "use get_metrics() or python -m moelens.bench",
    "stop_profile": "use get_metrics() or python -m moelens.bench",
    "collective_rpc": "there is one process; use llm.engine",
    "apply_model": "there is no torch module; use llm.engine",
    "from_engine_args": "use LLM(model, …)",
}


def refuse_arguments(unsupported: Iterable[str], method: Callable[..., object]) -> None:
    """Raise TypeError for the first of `unsupported`, with the reason or the nearest of the method's own arguments."""
    parameters = inspect.signature(method).parameters.values()
    known = [p.name for p in parameters if p.name != "self" and p.kind is not inspect.Parameter.VAR_KEYWORD]
    for name in unsupported:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        if name in _REASONS:
            raise TypeError(
                f"LLM() does not support vLLM's argument {name!r}: {_REASONS[name]}. "
                f"Leave it out; the nearest supported argument is {nearest!r}."
            )
        raise TypeError(f"LLM() has no argument {name!r}; the nearest supported argument is {nearest!r}.")


def unsupported_reason(name: str) -> str | None:
    """Why moelens has no argument `name` of vLLM's, where that is known."""
    return _REASONS.get(name)


def refuse_call_arguments(**given: object) -> None:
    """Raise ValidationError for the first argument of a call that is not None and means nothing here."""
    reasons = {
        "lora_request": "moelens has no LoRA adapters",
        "priority": "prompts are served in their order",
        "mm_processor_kwargs": "moelens reads text only",
    }
    for name, value in given.items():
        if value is not None:
            raise ValidationError(
                f"{name} is not supported: {reasons[name]}. Leave it out.", parameter=name, value=value
            )


def dtype_name(dtype: str | torch.dtype) -> str:
    """vLLM's names of a dtype, and torch's own, as one."""
    name = str(dtype).removeprefix("torch.")
    return {"float": "float32", "half": "float16"}.get(name, name)


def check_fixed(
    *,
    trust_remote_code: bool,
    tensor_parallel_size: int,
    kv_cache_dtype: str,
    dtype: str,
    gpu_memory_utilization: float | None,
    enforce_eager: bool,
    max_logprobs: int,
    device: str,
) -> None:
    """Check the arguments that have a single useful value here.

    Raises ConfigError.
    """
    if trust_remote_code:
        raise ConfigError(
            "trust_remote_code=True is refused: moelens never runs code that a checkpoint brings along. Models are "
            "built into moelens (see docs/adding_a_model.md), so leave it out."
        )
    if tensor_parallel_size != 1:
        raise ConfigError(
            f"tensor_parallel_size={tensor_parallel_size!r} is not supported: {_ONE_DEVICE}. Leave it out."
        )
    if dtype_name(kv_cache_dtype) not in ("auto", dtype):
        raise ConfigError(
            f"kv_cache_dtype={kv_cache_dtype!r} is not supported with dtype={dtype!r}: keys and values are cached in "
            "the model's dtype. Use 'auto'."
        )
    if not isinstance(max_logprobs, int) or isinstance(max_logprobs, bool) or max_logprobs < -1:
        raise ConfigError(f"max_logprobs must be non-negative or -1 (no limit), got {max_logprobs!r}.")
    _note_ineffective(gpu_memory_utilization, enforce_eager, device)


def _note_ineffective(gpu_memory_utilization: float | None, enforce_eager: bool, device: str) -> None:
    if gpu_memory_utilization is not None:
        if not 0 < gpu_memory_utilization <= 1:
            raise ConfigError(f"gpu_memory_utilization must be in (0, 1], got {gpu_memory_utilization}.")
        if not str(device).startswith("cuda"):
            logger.warning(
                "gpu_memory_utilization=%s has no effect, as no GPU is used: cpu_memory_bytes limits the memory here",
                gpu_memory_utilization,
            )
    if enforce_eager:
        logger.debug("enforce_eager=True has no effect: no graphs are captured here")
