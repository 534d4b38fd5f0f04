"""EngineOptions: every refusal, with its message."""

from __future__ import annotations

from typing import Any

import pytest

from moelens.errors import ConfigError
from moelens.options import EngineOptions
from moelens.plan import Plan

DEVICE = {"device": "emulated:link=4GB/s,memory=600MB"}
PLAN = Plan(step_tokens=8, max_requests=4, kv_blocks=4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "float16"}, "dtype='float16' is not supported: .* Use 'auto', 'bfloat16' or 'float32'"),
        ({"device": "gpu"}, "device='gpu' is not supported. Use 'auto', 'cpu', 'cuda', 'cuda:1' or 'emulated:link"),
        ({"quantization": "fp8"}, "quantization='fp8' is not supported: .*leave it out for none. Use 'int8'"),
        ({"quantization": "int8", "device": "cuda"}, "quantization='int8' with device='cuda' is not supported: .*CPUs"),
        ({"load_format": "pt"}, "load_format='pt' is not supported: .*safetensors"),
        ({"seed": None}, "seed must be an integer, got None"),
        ({"seed": 1.5}, "seed must be an integer, got 1.5"),
        ({"max_model_len": 0}, "max_model_len must be at least 1, got 0"),
        ({"max_num_seqs": -1}, "max_num_seqs must be at least 1, got -1"),
        ({"max_num_batched_tokens": "8k"}, "max_num_batched_tokens must be an integer, got '8k'"),
        ({"kv_cache_memory_bytes": 0}, "kv_cache_memory_bytes must be at least 1"),
        ({"cpu_memory_bytes": 1e9}, "cpu_memory_bytes must be an integer"),
        ({"cpu_weights_memory_bytes": -1}, "cpu_weights_memory_bytes must be at least 1"),
        ({"cpu_weights_memory_bytes": 1, "load_format": "dummy"}, "load_format='dummy' has none"),
        ({"cpu_weights_memory_bytes": 1, "shared_weights_dir": "d"}, "with shared_weights_dir is not supported"),
        ({"num_threads": True}, "num_threads must be an integer, got True"),
        ({"block_size": 16}, "block_size must be a multiple of 32, got 16: the kernels .* leave it out"),
        ({"block_size": "32"}, "block_size must be an integer, got '32'"),
        ({**DEVICE, "parts": 0}, "parts must be at least 1, got 0"),
        ({**DEVICE, "ring_layers": 1}, "ring_layers must be at least 2, got 1"),
        ({**DEVICE, "load_chunks": 2.5}, "load_chunks must be an integer, got 2.5"),
        ({**DEVICE, "resident_layers": -1}, "resident_layers must be at least 0, got -1"),
        ({**DEVICE, "experts_on_host": 1}, "experts_on_host must be True or False, got 1"),
        (
            {"parts": 2, "resident_layers": 0},
            "parts, resident_layers can't be given with device='auto': .*Leave it out",
        ),
        ({**DEVICE, "plan": PLAN, "parts": 2, "block_size": 64}, "block_size, parts can't be given together with plan"),
        ({"hf_overrides": ["a"]}, "hf_overrides must be a dict .*, got list"),
        ({"plan": PLAN, "num_threads": 2, "max_num_seqs": 2}, "max_num_seqs, num_threads can't be given together"),
        (
            {"max_num_seqs": 9, "max_num_batched_tokens": 8},
            r"max_num_batched_tokens \(8\) must be greater than or equal to max_num_seqs \(9\)",
        ),
    ],
)
def test_a_wrong_option_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineOptions("model", **fields)


def test_options_have_defaults_and_are_frozen() -> None:
    options = EngineOptions("model", plan=PLAN, max_model_len=10)
    assert options.quantization is None
    assert (options.dtype, options.device, options.load_format, options.seed) == ("auto", "auto", "auto", 0)
    with pytest.raises(AttributeError):
        options.seed = 1  # type: ignore[misc]
