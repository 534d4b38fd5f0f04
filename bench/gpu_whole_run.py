"""Tokens/s of a model of Mixtral-8x7B's shape held to 16 GB, and of peers, a part of gpu.py.

    python bench/gpu_whole_run.py OUTPUT SECONDS

Weights are random and never on disk. `busiest lane` is the share of a run in which the busiest of moelens' lanes works:
1 is a run that waits for nothing else.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEVICE_GB = 16
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 32
MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
}
LAYER_GB = 2.9


def layers_that_fit() -> int:
    """All 32, or as many as two thirds of the free memory of the host hold."""
    available = 1024 * int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0])
    return max(1, min(32, int(available * 2 / 3 / 1e9 / LAYER_GB)))


def run_moelens(folder: str, seconds: float, requests: int) -> dict[str, object]:
    """moelens on the device, with the share of the steps' time that each of its lanes works."""
    found = run([sys.executable, __file__, "--moelens", folder, str(requests)], seconds)
    row: dict[str, object] = {"who": "moelens", "requests": requests}
    for line in str(found.pop("output")).splitlines():
        if line.startswith("{"):
            row |= json.loads(line)
    return {**row, **found}


def run_transformers(folder: str, seconds: float, requests: int) -> dict[str, object]:
    """accelerate's offloading: layers that the device holds stay there, the others are copied when they are used."""
    row: dict[str, object] = {"who": "transformers + accelerate", "requests": requests}
    if not importlib.util.find_spec("accelerate") or not importlib.util.find_spec("transformers"):
        return {**row, "said": "not installed"}
    command = [sys.executable, __file__, "--transformers", folder, str(requests)]
    found = run(command, seconds)
    for line in str(found.pop("output")).splitlines():
        if line.startswith("seconds "):
            row["tokens/s"] = requests * (PROMPT_TOKENS + OUTPUT_TOKENS) / float(line.split()[1])
    return {**row, **found}


def run_vllm(folder: str, seconds: float, requests: int, layers: int) -> dict[str, object]:
    """vLLM's offloading, by its own bench."""
    row: dict[str, object] = {"who": "vLLM", "requests": requests}
    if not importlib.util.find_spec("vllm"):
        return {**row, "said": "not installed"}
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "throughput", "--model", folder]
    command += ["--load-format", "dummy", "--skip-tokenizer-init", "--input-len", str(PROMPT_TOKENS)]
    command += ["--output-len", str(OUTPUT_TOKENS), "--num-prompts", str(requests)]
    command += ["--cpu-offload-gb", str(max(0, round(layers * LAYER_GB - DEVICE_GB * 0.7)))]
    return {**row, **run(command, seconds)}


def run(command: list[str], seconds: float) -> dict[str, object]:
    """A command's exit status and its last words."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        return {"status": 124, "said": f"not done after {seconds:.0f} s", "output": ""}
    lines = (done.stdout + done.stderr).strip().splitlines()
    return {"status": done.returncode, "said": lines[-1][:200] if lines else "", "output": done.stdout[-2000:]}


def generate_with_moelens(folder: str, requests: int) -> None:
    """Prints what one run took, as JSON."""
    import torch

    from moelens import LLM, SamplingParams

    share = DEVICE_GB * 1e9 / torch.cuda.get_device_properties(0).total_memory
    llm = LLM(
        folder, load_format="dummy", skip_tokenizer_init=True, device="cuda", gpu_memory_utilization=min(1.0, share)
    )
    prompts = [{"prompt_token_ids": row} for row in torch.randint(5, 1000, (requests, PROMPT_TOKENS)).tolist()]
    params = SamplingParams(temperature=0.0, max_tokens=OUTPUT_TOKENS, ignore_eos=True, detokenize=False)
    begin = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - begin
    lanes = {m.name: m.value for m in llm.get_metrics() if m.name.endswith("_utilisation_perc")}
    found = {
        "tokens/s": requests * (PROMPT_TOKENS + OUTPUT_TOKENS) / seconds,
        "busiest lane": max(lanes.values()),
        "lanes": lanes,
    }
    print(json.dumps(found))


def generate_with_transformers(folder: str, requests: int) -> None:
    """Prints the seconds of one run."""
    import accelerate
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model = model.to_empty(device="cpu").eval()
    for parameter in model.parameters():
        parameter.data.fill_(0.01)  # what is computed does not matter, how long it takes does
    memory = {0: f"{DEVICE_GB}GB", "cpu": "10000GB"}
    placed = accelerate.infer_auto_device_map(model, memory, no_split_module_classes=model._no_split_modules)
    model = accelerate.dispatch_model(model, placed)
    ids = torch.randint(5, 1000, (requests, PROMPT_TOKENS), device="cuda")
    model.generation_config.eos_token_id = None
    torch.cuda.synchronize()
    begin = time.perf_counter()
    with torch.inference_mode():
        model.generate(ids, max_new_tokens=OUTPUT_TOKENS, min_new_tokens=OUTPUT_TOKENS, do_sample=False, pad_token_id=1)
    torch.cuda.synchronize()
    print(f"seconds {time.perf_counter() - begin}")


def main(output: str, seconds: str) -> None:
    end, layers = time.monotonic() + float(seconds), layers_that_fit()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps({**MIXTRAL, "num_hidden_layers": layers}))
        parts = [
            lambda left: run_moelens(folder, left / 2, 2048),
            lambda left: run_transformers(folder, left / 2, 64),
            lambda left: run_vllm(folder, left, 256, layers),
        ]
        for part in parts:
            row = part(end - time.monotonic())
            row.pop("output", None)
            rows.append({"layers": layers, **row})
            Path(output).write_text(json.dumps(rows))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if sys.argv[1] == "--moelens":
        generate_with_moelens(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1] == "--transformers":
        generate_with_transformers(sys.argv[2], int(sys.argv[3]))
    else:
        main(*sys.argv[1:])
