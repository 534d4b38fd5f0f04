"""What sharing beginnings saves: prompts that have most of their tokens in common, with and without it.

    python bench/prefix_sharing.py MODEL [--requests 256] [--shared 1000] [--own 100] [--layers N]

--layers makes random weights in the shape of so many of the model's layers. Each prompt asks for one token, so all of
the time is that of prompts. With sharing it is the median of three runs, each with another beginning. Checks that the
tokens are the same.
"""

from __future__ import annotations

import argparse
import random

from moelens import LLM, SamplingParams

PARAMS = SamplingParams(max_tokens=1, temperature=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--shared", type=int, default=1000)
    parser.add_argument("--own", type=int, default=100)
    parser.add_argument("--layers", type=int)
    found = parser.parse_args()
    seconds, tokens = {}, {}
    for sharing in (True, False):
        llm = LLM(
            found.model,
            enable_prefix_caching=sharing,
            max_num_seqs=64,
            max_num_batched_tokens=2048,
            max_model_len=found.shared + found.own + 8,
            load_format="auto" if found.layers is None else "dummy",
            hf_overrides=None if found.layers is None else {"num_hidden_layers": found.layers},
            use_tqdm_on_load=False,
        )
        draw = random.Random(1)
        token_ids = range(3, llm.engine.vocab)
        llm.generate([draw.choices(token_ids, k=64)], PARAMS, use_tqdm=False)  # warms up
        prompts = [prompts_of(draw, token_ids, found) for _ in range(3 if sharing else 1)]
        took = []
        for of_one_run in prompts:
            before = llm.engine.totals.prefill_seconds
            outputs = llm.generate(of_one_run, PARAMS, use_tqdm=False)
            took.append(llm.engine.totals.prefill_seconds - before)
            tokens[sharing] = tokens.get(sharing) or [list(output.outputs[0].token_ids) for output in outputs]
        seconds[sharing] = sorted(took)[len(took) // 2]
        cached = sum(output.num_cached_tokens or 0 for output in outputs)
        total = found.requests * (found.shared + found.own)
        print(f"sharing {sharing}: {', '.join(f'{one:.2f}' for one in took)} s, ", end="")
        print(f"{cached} of {total} prompt tokens taken over", flush=True)
    same = "the same tokens" if tokens[True] == tokens[False] else "OTHER TOKENS"
    print(f"{seconds[False] / seconds[True]:.2f} times less, {same}")


def prompts_of(draw: random.Random, token_ids: range, found: argparse.Namespace) -> list[list[int]]:
    """Prompts that begin alike and go on differently."""
    common = draw.choices(token_ids, k=found.shared)
    return [common + draw.choices(token_ids, k=found.own) for _ in range(found.requests)]


if __name__ == "__main__":
    main()
