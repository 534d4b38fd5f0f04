"""Flags that choose and size a model, with vLLM's names."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from moelens.cli.parser import json_object, parse_bytes, positive
from moelens.plan import Streaming

DEVICE_HELP = "auto, cpu, cuda or emulated:link=4GB/s,memory=600MB"


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that are arguments of LLM; one that is left out has the library's default."""
    model = parser.add_argument_group("model")
    model.add_argument("--model", required=True, help="a checkpoint's folder, or the hub's name of one")
    model.add_argument("--revision", help="branch, tag or commit on the hub")
    model.add_argument("--tokenizer", help="folder or name of another tokenizer")
    model.add_argument("--tokenizer-revision")
    model.add_argument("--tokenizer-mode", choices=("auto", "hf"))
    model.add_argument("--chat-template", help="a Jinja file, or the template itself")
    model.add_argument("--load-format", choices=("auto", "safetensors", "dummy"), help="dummy: random weights")
    model.add_argument("--dtype", help="auto, bfloat16 or float32")
    model.add_argument("--quantization", help="int8: quantise the weights as they are loaded")
    model.add_argument("--download-dir", help="where the hub's files are kept")
    model.add_argument("--hf-token", help="for gated models; better kept in the hub's own login")
    model.add_argument("--hf-overrides", type=json_object, help='entries of config.json, e.g. {"rope_theta": 1e6}')
    model.add_argument("--generation-config", help="auto (the model's own), vllm (none) or a folder")
    model.add_argument("--override-generation-config", type=json_object, help="entries of generation_config.json")
    model.add_argument("--seed", type=int, default=0, help="of all lines that have none of their own")

    engine = parser.add_argument_group("engine")
    engine.add_argument("--device", help=DEVICE_HELP)
    engine.add_argument("--max-logprobs", type=int, help="log-probabilities per token at most (-1: no limit)")
    engine.add_argument("--shared-weights-dir", help="a folder where processes share one copy of the weights")
    add_engine_flags(engine)


def add_engine_flags(group: argparse._ArgumentGroup) -> None:
    """The flags of limits, of memory and of the plan."""
    group.add_argument("--max-model-len", type=positive, help="tokens of prompt and output at most")
    group.add_argument("--max-num-seqs", type=positive, help="texts in a step at most")
    group.add_argument("--max-num-batched-tokens", type=positive, help="tokens in a step at most")
    group.add_argument("--kv-cache-memory-bytes", type=parse_bytes, help="e.g. 4GiB")
    group.add_argument("--cpu-memory-bytes", type=parse_bytes, help="for weights and cache together, e.g. 64GiB")
    group.add_argument(
        "--cpu-weights-memory-bytes", type=parse_bytes, help="of that, for weights; other experts are read from disk"
    )
    group.add_argument(
        "--enable-prefix-caching", action=argparse.BooleanOptionalAction, help="compute equal beginnings once"
    )
    group.add_argument("--gpu-memory-utilization", type=float, help="share of a GPU's memory, in (0, 1]")
    group.add_argument("--gpu-memory-bytes", type=parse_bytes, help="of a GPU, e.g. 16GB")
    group.add_argument("--num-threads", type=positive)
    add_plan_flags(group)


def add_plan_flags(group: argparse._ArgumentGroup) -> None:
    """The flags that fix what is else chosen of a plan, beside the limits of steps and memory."""
    group.add_argument("--block-size", type=positive, help="tokens of a block of the cache, a multiple of 32")
    group.add_argument("--parts", type=positive, help="of a step, for a device")
    group.add_argument("--ring-layers", type=positive, help="whose weights a device holds at once while they stream")
    group.add_argument("--load-chunks", type=positive, help="in which a layer's weights stream")
    group.add_argument("--resident-layers", type=int, help="that stay on a device")
    group.add_argument(
        "--experts-on-host",
        action=argparse.BooleanOptionalAction,
        help="whether the host may finish rows of small steps for a device",
    )


ENGINE_ARGUMENTS = (
    "revision",
    "tokenizer",
    "tokenizer_revision",
    "tokenizer_mode",
    "chat_template",
    "load_format",
    "dtype",
    "quantization",
    "download_dir",
    "hf_token",
    "hf_overrides",
    "generation_config",
    "override_generation_config",
    "device",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_logprobs",
    "kv_cache_memory_bytes",
    "cpu_memory_bytes",
    "cpu_weights_memory_bytes",
    "gpu_memory_utilization",
    "gpu_memory_bytes",
    "enable_prefix_caching",
    "num_threads",
    "shared_weights_dir",
    "block_size",
    *(field.name for field in fields(Streaming)),
)


def engine_arguments(found: argparse.Namespace) -> dict[str, Any]:
    """The arguments of LLM that were given or have a default, but for model and seed, by a command's flags."""
    return {name: value for name in ENGINE_ARGUMENTS if (value := getattr(found, name, None)) is not None}
