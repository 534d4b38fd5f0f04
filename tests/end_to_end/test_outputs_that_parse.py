"""Structured outputs of a real engine: every one parses, and none depends on what runs beside it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_config import CONFIG

from moelens import LLM, RequestOutput, SamplingParams, ValidationError

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "size": {"type": "integer", "minimum": 0, "maximum": 999},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "size", "tags"],
    "additionalProperties": False,
}
LIST = 'start: "[" item ("," item)~0..4 "]"\nitem: /[a-z]{1,3}/'
FORMS: tuple[dict[str, Any], ...] = (
    {"json": SCHEMA, "disable_any_whitespace": True},
    {"regex": r"\d{3}-[A-F]{2,4}"},
    {"choice": ["positive", "negative", "ça va"]},
    {"grammar": LIST},
)


def parses(text: str, form: dict[str, Any]) -> bool:
    if "json" in form:
        value = json.loads(text)
        return (
            list(value) == ["name", "size", "tags"]
            and len(value["name"]) <= 6
            and 0 <= value["size"] <= 999
            and set(value["tags"]) <= {"red", "blue"}
        )
    if "choice" in form:
        return text in form["choice"]
    return re.fullmatch(form.get("regex", r"\[[a-z]{1,3}(,[a-z]{1,3}){0,4}\]"), text) is not None


@pytest.fixture(scope="module")
def folder(byte_tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("structured") / "model"
    shutil.copytree(byte_tokenizer_folder, path)
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


def make_llm(folder: Path, **sizes: Any) -> LLM:
    return LLM(folder, load_format="dummy", num_threads=1, use_tqdm_on_load=False, **sizes)


def params_of(index: int, **fields: Any) -> SamplingParams:
    form = None if index % 5 == 4 else FORMS[index % 5]  # every fifth is free
    return SamplingParams(
        **{"temperature": 1.5, "max_tokens": 120, "seed": index, "structured_outputs": form, **fields}
    )


def run(llm: LLM, count: int, **fields: Any) -> list[RequestOutput]:
    prompts = [f"{'All prompts begin alike. ' * 3}{i % 7}" for i in range(count)]
    return llm.generate(prompts, [params_of(i, **fields) for i in range(count)], use_tqdm=False)


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[list[int]]:
    """The tokens of each of 20 prompts that ran by itself, without prefix sharing."""
    llm = make_llm(folder, max_num_seqs=1, enable_prefix_caching=False)
    return [list(output.outputs[0].token_ids) for output in run(llm, 20)]


def test_every_output_parses(folder: Path, alone: list[list[int]]) -> None:
    outputs = run(make_llm(folder, max_num_seqs=32), 60)
    ended = 0
    for index, output in enumerate(outputs):
        one, form = output.outputs[0], params_of(index).structured_outputs
        if form is not None:
            assert one.finish_reason == "stop" and one.stop_reason is None, one
            assert parses(one.text, FORMS[index % 5]), one.text
            ended += one.token_ids[-1] != 1
    assert ended > 30, "the request ends with its grammar, not with a token more"
    assert [list(output.outputs[0].token_ids) for output in outputs[:20]] == alone
    assert any(output.num_cached_tokens for output in outputs)


def test_tokens_are_the_same_after_preemptions(folder: Path, alone: list[list[int]]) -> None:
    llm = make_llm(folder, max_num_seqs=8, kv_cache_memory_bytes=8 * 24576, max_model_len=256)
    outputs = run(llm, 20)
    assert sum(output.metrics.preemptions for output in outputs if output.metrics) > 0
    assert [list(output.outputs[0].token_ids) for output in outputs] == alone


def test_samples_of_one_prompt_have_states_of_their_own(folder: Path) -> None:
    llm = make_llm(folder)
    form = {"regex": "[a-z]{4,8}"}
    params = SamplingParams(n=16, temperature=1.5, seed=1, max_tokens=50, structured_outputs=form, logprobs=1)
    (output,) = llm.generate("A word: ", params, use_tqdm=False)
    texts = [one.text for one in output.outputs]
    assert all(re.fullmatch("[a-z]{4,8}", text) for text in texts) and len(set(texts)) > 8
    assert all(len(one.logprobs or ()) == len(one.token_ids) for one in output.outputs)
    metrics = {metric.name: metric.value for metric in llm.get_metrics()}
    assert metrics["moelens:constraint_seconds"] > 0


def test_stop_strings_and_lengths_still_end_a_text(folder: Path) -> None:
    llm = make_llm(folder)
    cut = SamplingParams(temperature=1.0, seed=1, max_tokens=90, structured_outputs={"regex": "[ab]{80}"}, stop="b")
    short = SamplingParams(temperature=1.0, max_tokens=5, structured_outputs={"regex": "[ab]{80}"})
    exact = SamplingParams(
        temperature=1.0, max_tokens=5, structured_outputs={"regex": "[xyz]{5}"}, stop="b", ignore_eos=True
    )
    first, second, third = (
        output.outputs[0] for output in llm.generate(["a"] * 3, [cut, short, exact], use_tqdm=False)
    )
    assert first.stop_reason == "b" and set(first.text) <= {"a"}
    assert second.finish_reason == "length" and len(second.text) == 5
    assert third.finish_reason == "stop" and len(third.text) == 5


def test_a_form_that_cannot_be_compiled_is_refused_before_anything_runs(folder: Path) -> None:
    llm = make_llm(folder)
    with pytest.raises(ValidationError, match="structured_outputs can't be compiled"):
        llm.generate("a", SamplingParams(structured_outputs={"regex": "("}), use_tqdm=False)
    without = LLM(folder, load_format="dummy", skip_tokenizer_init=True, use_tqdm_on_load=False)
    with pytest.raises(ValidationError, match="structured_outputs needs a tokenizer"):
        without.generate([[5]], SamplingParams(structured_outputs={"regex": "a"}, detokenize=False), use_tqdm=False)
