"""Compares greedy tokens and logits with transformers' on the same checkpoints, and prints a table.

    python -m bench.token_agreement --architectures mixtral olmoe      made in the cache as the demo does it
    python -m bench.token_agreement --models FOLDER [FOLDER ...] --output-json agreement.json

float32: `prompts` requests of `tokens` greedy tokens each. transformers reads our texts, and every token is judged by
what it would have picked after the tokens before: the same, something else at a near tie (its two best logits less than
1e-3 apart), or something else where it was sure, which is wrong. A text without a difference is the one that it
generates. bfloat16: the relative error of the logits after each prompt against transformers in float32, over all
prompts at once and of the prompt in the middle, beside the errors that transformers itself makes in bfloat16.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DbrxConfig, PreTrainedModel

from moelens import LLM, SamplingParams
from moelens.checkpoint.load import load_weights
from moelens.checkpoint.source import read_config
from moelens.memory.kv_cache import KVCache
from moelens.models.registry import build
from moelens.ops.interface import AttentionRows
from moelens.ops.native import NativeOps
from moelens.planning.default import BLOCK_TOKENS

PROMPTS = Path(__file__).parent / "agreement_prompts.jsonl"
NEAR_TIE = 1e-3


@dataclass(frozen=True)
class Errors:
    """Relative errors of logits: over all prompts at once, and the median of the prompts' own.

    The first is that of the few prompts in which a near tie of a router fell the other way.
    """

    all: float
    median: float


@dataclass(frozen=True)
class Agreement:
    """What the comparison of one checkpoint gave; `wrong` tokens differ where the reference was sure."""

    model: str
    prompts: int
    tokens: int
    equal_texts: int
    near_ties: int
    wrong: int
    bfloat16: Errors | None = None
    transformers_bfloat16: Errors | None = None


def compare(
    folder: Path,
    name: str,
    prompts: Sequence[list[int]],
    tokens: int,
    *,
    bfloat16: bool,
    threads: int | None = None,
) -> Agreement:
    """Everything about the checkpoint in `folder`. Loads one model at a time."""
    ours = generate(folder, prompts, tokens, threads)
    our_logits = last_logits(folder, prompts, threads) if bfloat16 else None
    gc.collect()
    model = reference(folder, torch.float32)
    judged = [judge(model, prompt, output) for prompt, output in zip(prompts, ours, strict=True)]
    agreement = Agreement(
        model=name,
        prompts=len(prompts),
        tokens=sum(len(text) for text in ours),
        equal_texts=judged.count((0, 0)),
        near_ties=sum(near_ties for near_ties, _ in judged),
        wrong=sum(wrong for _, wrong in judged),
    )
    if our_logits is None:
        return agreement
    exact = reference_logits(model, prompts)
    del model
    gc.collect()
    rounded = reference_logits(reference(folder, torch.bfloat16), prompts)
    return replace(agreement, bfloat16=errors_of(our_logits, exact), transformers_bfloat16=errors_of(rounded, exact))


def generate(folder: Path, prompts: Sequence[list[int]], tokens: int, threads: int | None = None) -> list[list[int]]:
    """Our greedy tokens in float32."""
    llm = LLM(str(folder), dtype="float32", skip_tokenizer_init=True, num_threads=threads)
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def last_logits(folder: Path, prompts: Sequence[list[int]], threads: int | None = None) -> torch.Tensor:
    """Our logits after each prompt in bfloat16 [prompts, V]: our kernels on one prompt at a time."""
    architecture = build(read_config(folder), torch.bfloat16)
    ops = NativeOps(threads)
    store = load_weights(folder, architecture, ops, threads=ops.threads)
    rows = []
    for prompt in prompts:
        count = len(prompt)
        blocks = -(-count // BLOCK_TOKENS)
        cache = KVCache(architecture.config, ops, blocks=blocks, block_tokens=BLOCK_TOKENS)
        positions = torch.arange(count, dtype=torch.int32)
        seen = AttentionRows(int32(0, count), int32(0), torch.arange(blocks, dtype=torch.int32)[None])
        x = architecture.embed(ops, store.resident, int32(*prompt))
        for index, layer in enumerate(architecture.config.layers):
            weights, attention = store.layer(index), layer.attention
            q, k, v = architecture.before_attention(ops, index, weights, x, positions)
            ops.write_kv(k, v, cache.layers[index], positions)
            attended = ops.attention(q, cache.layers[index], seen, attention.scale, attention.window)
            x = architecture.after_attention(ops, index, weights, x, attended)
        rows.append(architecture.logits(ops, store.resident, x[-1:]))
    return torch.cat(rows)


def reference(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@torch.no_grad()
def judge(model: PreTrainedModel, prompt: list[int], output: list[int]) -> tuple[int, int]:
    """How many tokens of `output` the model would not have picked after what stands before: near ties, and wrong."""
    logits = model(torch.tensor([prompt + output[:-1]])).logits[0, len(prompt) - 1 :].float()
    best = logits.topk(2).values
    differs = logits.argmax(-1) != torch.tensor(output)
    near = best[:, 0] - best[:, 1] < NEAR_TIE
    return int((differs & near).sum()), int((differs & ~near).sum())


@torch.no_grad()
def reference_logits(model: PreTrainedModel, prompts: Sequence[list[int]]) -> torch.Tensor:
    """transformers' logits after each prompt [prompts, V], one prompt at a time."""
    return torch.cat([model(torch.tensor([prompt])).logits[0, -1:].float() for prompt in prompts])


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def errors_of(found: torch.Tensor, exact: torch.Tensor) -> Errors:
    """The errors of rows [prompts, V] of logits."""
    each = [relative(*pair) for pair in zip(found, exact, strict=True)]
    return Errors(relative(found, exact), statistics.median(each))


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def read_prompts(count: int, folder: Path) -> list[list[int]]:
    """The first `count` prompts of the file as tokens, or random ones for a model without a tokenizer."""
    if not (folder / "tokenizer.json").exists():
        random = torch.Generator().manual_seed(1)
        vocab = AutoConfig.from_pretrained(folder).vocab_size
        lengths = torch.randint(1, 48, (count,), generator=random).tolist()
        return [torch.randint(vocab, (length,), generator=random).tolist() for length in lengths]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines = PROMPTS.read_text(encoding="utf-8").splitlines()[:count]
    return [tokenizer(json.loads(line)["prompt"])["input_ids"] for line in lines]


def make_random_dbrx(folder: Path) -> Path:
    """A DBRX of a few megabytes: no small one with real text can be made, as it has layer norms."""
    torch.manual_seed(0)
    config = DbrxConfig(
        d_model=128,
        n_heads=4,
        n_layers=4,
        vocab_size=1000,
        max_seq_len=512,
        rope_theta=10_000.0,
        attn_config={"kv_n_heads": 2, "clip_qkv": 4.0, "rope_theta": 10_000.0},
        ffn_config={"ffn_hidden_size": 96, "moe_num_experts": 8, "moe_top_k": 3},
        initializer_range=0.1,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def table(agreements: Sequence[Agreement]) -> str:
    """Markdown, one line per checkpoint."""
    lines = [
        "| model | prompts | tokens | equal texts | near ties | wrong tokens "
        "| bf16 error (median) | transformers' (median) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in agreements:
        errors = (one.bfloat16, one.transformers_bfloat16)
        cells = (one.model, one.prompts, one.tokens, one.equal_texts, one.near_ties, one.wrong)
        shown = [*map(str, cells), *(f"{e.all:.1e} ({e.median:.1e})" if e else "–" for e in errors)]
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="*", default=[], metavar="FOLDER")
    parser.add_argument("--architectures", nargs="*", default=[], help="of real_moe, or all of them: all")
    parser.add_argument("--random-dbrx", action="store_true", help="also a random DBRX")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, help="of torch and of moelens")
    parser.add_argument("--no-bfloat16", dest="bfloat16", action="store_false")
    parser.add_argument("--output-json", type=Path)
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folders = {str(folder.name): folder for folder in arguments.models}
        folders |= made(arguments.architectures)
        if arguments.random_dbrx:
            folders["dbrx (random)"] = make_random_dbrx(Path(scratch))
        agreements = []
        for name, folder in folders.items():
            prompts = read_prompts(arguments.prompts, folder)
            compared = compare(
                folder, name, prompts, arguments.tokens, bfloat16=arguments.bfloat16, threads=arguments.threads
            )
            agreements.append(compared)
            print(table(agreements[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(table(agreements))
    if arguments.output_json is not None:
        arguments.output_json.write_text(json.dumps([asdict(one) for one in agreements], indent=2) + "\n")
    if any(one.wrong for one in agreements):
        sys.exit("token_agreement: some tokens differ where the reference was sure")


def made(architectures: Sequence[str]) -> dict[str, Path]:
    """The folders of real-text checkpoints, made now if the cache lacks them."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    from real_moe import ARCHITECTURES, default_recipe, ensure_checkpoint

    wanted = ARCHITECTURES if "all" in architectures else architectures
    return {name: ensure_checkpoint(default_recipe(name)) for name in wanted}


if __name__ == "__main__":
    main()
