"""LLM over an engine without a model: prompt forms, parameters, order, overlapping calls, interrupts, refusals."""

from __future__ import annotations

import io
import itertools
import json
import logging
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_engine import FakeEngine

from moelens import LLM, SamplingParams, TextPrompt, TokensPrompt
from moelens.errors import CheckpointError, ConfigError, UnsupportedCallError, ValidationError
from moelens.options import EngineOptions
from moelens.request import Request

MakeLLM = Callable[..., LLM]
SHORT = SamplingParams(max_tokens=3, ignore_eos=True)


@pytest.fixture
def model_folder(byte_tokenizer_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(byte_tokenizer_folder, folder)
    return folder


@pytest.fixture
def make_llm(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> MakeLLM:
    """Makes an LLM with a FakeEngine; `engine` are the arguments of that."""

    def make(engine: dict[str, Any] | None = None, **arguments: Any) -> LLM:
        def build_engine(options: EngineOptions, folder: Path, tokenizer: Any, *, show_progress: bool) -> FakeEngine:
            made = FakeEngine(tokenizer, **(engine or {}))
            made.options, made.show_progress = options, show_progress  # type: ignore[attr-defined]
            return made

        assembly = types.ModuleType("moelens.assembly")
        assembly.build_engine = build_engine  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "moelens.assembly", assembly)
        return LLM(model_folder, **arguments)

    return make


def fake(llm: LLM) -> FakeEngine:
    engine = llm.engine
    assert isinstance(engine, FakeEngine)
    return engine


def scripted(tokenizer: Any, text: str) -> Callable[[Request], int]:
    """Every request says `text`, then ends."""
    token_ids = [*tokenizer.encode([text], {"add_special_tokens": False})[0], 1]
    return lambda request: token_ids[request.num_output_tokens]


# --- prompts and outputs ----------------------------------------------------------------------------------------------


def test_outputs_come_in_the_order_of_prompts(make_llm: MakeLLM) -> None:
    llm = make_llm()
    params = [SamplingParams(max_tokens=1 + i % 5, ignore_eos=True) for i in range(20)]
    outputs = llm.generate([f"prompt {i}" for i in range(20)], params, use_tqdm=False)
    assert [output.prompt for output in outputs] == [f"prompt {i}" for i in range(20)]
    assert [output.prompt_index for output in outputs] == list(range(20))
    assert [output.request_id for output in outputs] == [str(i) for i in range(20)]
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1 + i % 5 for i in range(20)]
    assert all(output.finished and output.outputs[0].finished() for output in outputs)
    assert {output.outputs[0].finish_reason for output in outputs} == {"length"}


def test_every_form_of_prompt_is_taken(make_llm: MakeLLM, byte_tokenizer: Any) -> None:
    llm = make_llm()
    ids = byte_tokenizer.encode(["the"])[0].tolist()
    assert ids[0] == 0  # <s>
    forms: list[Any] = [
        "the",
        ids,
        TextPrompt(prompt="the"),
        TokensPrompt(prompt_token_ids=ids),
        {"prompt_token_ids": ids, "prompt": "its text"},
    ]
    for form in forms:
        (output,) = llm.generate(form, SHORT, use_tqdm=False)
        assert output.prompt_token_ids == ids
    outputs = llm.generate(forms, SHORT, use_tqdm=False)
    assert [output.prompt for output in outputs] == ["the", None, "the", None, "its text"]
    assert llm.generate((form for form in forms[:2]), SHORT, use_tqdm=False)[1].prompt_token_ids == ids
    assert llm.generate([], SHORT, use_tqdm=False) == []


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a", []], "Prompt 1: The decoder prompt cannot be empty."),
        (["a", [5, 300]], "Prompt 1: Token id 300 is out of vocabulary, which has 300 ids."),
        ([[-1]], "Prompt 0: Token id -1 is out of vocabulary, which has 300 ids."),
        (
            ["a", [5] * 65],
            "Prompt 1: The decoder prompt (length 65) is longer than the maximum model length of 64. Make sure that "
            "`max_model_len` is no smaller than the number of text tokens, or shorten the prompt.",
        ),
        (
            [[5] * 64],
            "Prompt 0: The decoder prompt (length 64) plus the number of requested output tokens (at least 1) is "
            "longer than the maximum model length of 64. Make sure that `max_model_len` is no smaller than the number "
            "of text tokens (prompt + requested output tokens), or shorten the prompt.",
        ),
        ([{"prompt": 3}], "Prompt 0: 'prompt' must be a str, got int."),
        ([{}], "Prompt 0: neither 'prompt' nor 'prompt_token_ids' is given: give a str, a list of token ids, "),
        (["a", {"prompt": "a", "multi_modal_data": {}}], "Prompt 1: 'multi_modal_data' is not supported: give a str"),
        ([{"prompt_embeds": torch.ones(1)}], "Prompt 0: 'prompt_embeds' is not supported: "),
        ([["a"]], "Prompt 0: token ids must be integers"),
        ([None], "Prompt 0: a prompt can't be a NoneType: give a str"),
        (3, "prompts must be a prompt or a list of prompts, got int: give a str"),
    ],
)
def test_a_wrong_prompt_is_named_and_nothing_runs(make_llm: MakeLLM, prompts: Any, message: str) -> None:
    llm = make_llm()
    with pytest.raises(ValidationError) as caught:
        llm.generate(prompts, SHORT, use_tqdm=False)
    assert str(caught.value).startswith(message)
    assert caught.value.parameter == "prompts"
    assert not fake(llm).waiting and fake(llm).totals.steps == 0
    assert len(llm.generate("a", SHORT, use_tqdm=False)) == 1


def test_text_is_cut_at_stop_strings(make_llm: MakeLLM, byte_tokenizer: Any) -> None:
    llm = make_llm({"next_token": scripted(byte_tokenizer, "a the stop b")})
    params = SamplingParams(max_tokens=None, stop=["zz", "stop"])
    completion = llm.generate("x", params, use_tqdm=False)[0].outputs[0]
    assert (completion.text, completion.finish_reason, completion.stop_reason) == ("a the ", "stop", "stop")
    completion = llm.generate("x", SamplingParams(max_tokens=None), use_tqdm=False)[0].outputs[0]
    assert (completion.text, completion.finish_reason, completion.stop_reason) == ("a the stop b", "stop", None)
    assert completion.token_ids[-1] == 1
    assert llm.generate("x", SamplingParams(detokenize=False), use_tqdm=False)[0].outputs[0].text == ""


def test_logprobs_are_given_when_asked_for(make_llm: MakeLLM) -> None:
    llm = make_llm()
    plain = llm.generate("ab", SHORT, use_tqdm=False)[0]
    assert plain.prompt_logprobs is None
    assert plain.outputs[0].logprobs is None and plain.outputs[0].cumulative_logprob is None
    params = SamplingParams(max_tokens=3, ignore_eos=True, logprobs=0, prompt_logprobs=0)
    output = llm.generate([[4 + 65]], params, use_tqdm=False)[0]
    assert output.prompt_logprobs == [None]
    output = llm.generate("ab", params, use_tqdm=False)[0]
    assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
    assert [one.decoded_token for entry in output.prompt_logprobs[1:] for one in (entry or {}).values()] == ["a", "b"]
    completion = output.outputs[0]
    assert completion.cumulative_logprob == -1.5
    assert completion.logprobs is not None
    assert [list(entry) for entry in completion.logprobs] == [[token_id] for token_id in completion.token_ids]


def test_a_request_that_fails_says_why_and_others_go_on(make_llm: MakeLLM) -> None:
    llm = make_llm({"next_token": lambda request: -1 if len(request.prompt_token_ids) == 2 else 7})
    bad, good = llm.generate(["a", "ab"], SHORT, use_tqdm=False)
    assert bad.outputs[0].finish_reason == "error"
    assert bad.outputs[0].stop_reason == "the model's logits were not finite"
    assert good.outputs[0].token_ids == [7, 7, 7]


def test_metrics_of_a_request(make_llm: MakeLLM) -> None:
    (output,) = make_llm().generate("a", SamplingParams(n=2, max_tokens=3, ignore_eos=True), use_tqdm=False)
    assert output.metrics is not None
    assert output.metrics.num_generation_tokens == 6
    assert output.metrics.first_token_latency == pytest.approx(1.0)


# --- sampling parameters ----------------------------------------------------------------------------------------------


def test_lengths_must_agree(make_llm: MakeLLM) -> None:
    with pytest.raises(ValidationError, match=r"^The lengths of prompts \(3\) and params \(2\) must be the same\.$"):
        make_llm().generate(["a", "b", "c"], [SHORT, SHORT], use_tqdm=False)


@pytest.mark.parametrize("params", ["x", {"n": 1}, [3], 3])
def test_params_of_another_type_are_refused(make_llm: MakeLLM, params: Any) -> None:
    with pytest.raises(ValidationError, match="sampling_params must be a SamplingParams or a list of them, got "):
        make_llm().generate(["a"], params, use_tqdm=False)


def test_params_are_checked_against_the_model(make_llm: MakeLLM) -> None:
    llm = make_llm(max_logprobs=5)
    with pytest.raises(ValidationError, match="Requested sample logprobs of 6, which is greater than max allowed: 5"):
        llm.generate("a", SamplingParams(logprobs=6), use_tqdm=False)
    with pytest.raises(ValidationError, match="allowed_token_ids contains out-of-vocab token id!"):
        llm.generate(["a"], [SamplingParams(allowed_token_ids=[300])], use_tqdm=False)


def test_changing_params_later_changes_nothing(make_llm: MakeLLM) -> None:
    llm = make_llm()
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    llm.enqueue("a", params, use_tqdm=False)
    params.max_tokens = 7
    assert len(llm.wait_for_completion(use_tqdm=False)[0].outputs[0].token_ids) == 3
    assert len(llm.generate("a", params, use_tqdm=False)[0].outputs[0].token_ids) == 7


def test_equal_params_are_one_object(make_llm: MakeLLM) -> None:
    llm = make_llm()
    llm.generate(["a"] * 5, [SamplingParams(max_tokens=2 + i % 2) for i in range(5)], use_tqdm=False)
    assert len({id(request.params) for request in fake(llm).seen}) == 2


def test_n_samples_share_a_prompt_and_keep_their_order(make_llm: MakeLLM) -> None:
    llm = make_llm()
    params = SamplingParams(n=4, max_tokens=5, ignore_eos=True, prompt_logprobs=0)
    outputs = llm.generate(["ab", "cd"], params, use_tqdm=False)
    assert [[completion.index for completion in output.outputs] for output in outputs] == [[0, 1, 2, 3]] * 2
    assert len({tuple(completion.token_ids) for output in outputs for completion in output.outputs}) == 8
    assert [output.request_id for output in outputs] == ["0", "1"]
    requests = fake(llm).seen[:4]
    assert len({id(request.prompt_token_ids) for request in requests}) == 1
    assert [request.params.prompt_logprobs for request in requests] == [0, None, None, None]
    assert all(output.prompt_logprobs is not None for output in outputs)


def test_bad_words_become_tokens(make_llm: MakeLLM, byte_tokenizer: Any) -> None:
    llm = make_llm()
    params = SamplingParams(n=2, max_tokens=2, bad_words=["the", "stop a"], prompt_logprobs=0)
    llm.generate("a", params, use_tqdm=False)
    encode = byte_tokenizer.encode(["the", " the", "stop a"], {"add_special_tokens": False})
    assert {request.params.bad_words_token_ids for request in fake(llm).seen} == {tuple(tuple(ids) for ids in encode)}


@pytest.mark.parametrize("name", ["stop", "bad_words"])
def test_words_need_a_tokenizer(make_llm: MakeLLM, name: str) -> None:
    llm = make_llm(skip_tokenizer_init=True)
    with pytest.raises(ValidationError, match=f"^{name} needs a tokenizer, but skip_tokenizer_init=True was given"):
        llm.generate([[5]], SamplingParams(**{name: ["a"]}), use_tqdm=False)  # type: ignore[arg-type]


def test_without_a_tokenizer_tokens_come_and_go(make_llm: MakeLLM) -> None:
    llm = make_llm(skip_tokenizer_init=True)
    (output,) = llm.generate([[5, 6]], SHORT, use_tqdm=False)
    assert output.outputs[0].text == "" and len(output.outputs[0].token_ids) == 3
    with pytest.raises(ValidationError, match="A prompt of text needs a tokenizer"):
        llm.generate(["a"], SHORT, use_tqdm=False)
    with pytest.raises(ConfigError, match="There is no tokenizer"):
        llm.chat([{"role": "user", "content": "a"}], use_tqdm=False)
    with pytest.raises(ConfigError, match="There is no tokenizer"):
        llm.get_tokenizer()


def test_a_seed_gives_the_same_tokens_in_any_company(make_llm: MakeLLM) -> None:
    params = SamplingParams(seed=5, max_tokens=4, ignore_eos=True)
    llm = make_llm()
    alone = llm.generate("a", params, use_tqdm=False)[0].outputs[0].token_ids
    among = llm.generate(["b", "c", "a"], params, use_tqdm=False)[2].outputs[0].token_ids
    assert alone == among
    unseeded = llm.generate(["a", "a"], SHORT, use_tqdm=False)
    assert unseeded[0].outputs[0].token_ids != unseeded[1].outputs[0].token_ids


def test_the_llms_seed_repeats_a_run(make_llm: MakeLLM) -> None:
    runs = [make_llm(seed=seed).generate(["a", "b"], SHORT, use_tqdm=False) for seed in (3, 3, 4)]
    tokens = [[output.outputs[0].token_ids for output in run] for run in runs]
    assert tokens[0] == tokens[1] != tokens[2]


# --- defaults ---------------------------------------------------------------------------------------------------------


def test_default_params_come_from_the_models_generation_config(make_llm: MakeLLM, model_folder: Path) -> None:
    config = {"temperature": 0.6, "top_k": 20, "do_sample": True, "eos_token_id": [1], "max_new_tokens": 7}
    (model_folder / "generation_config.json").write_text(json.dumps(config))
    params = make_llm().get_default_sampling_params()
    assert (params.temperature, params.top_k, params.max_tokens) == (0.6, 20, 7)
    assert make_llm(generation_config="vllm").get_default_sampling_params() == SamplingParams()
    changed = make_llm(override_generation_config={"temperature": 0.3}).get_default_sampling_params()
    assert (changed.temperature, changed.top_k) == (0.3, 20)
    llm = make_llm()
    llm.get_default_sampling_params().max_tokens = 1
    assert len(llm.generate("a", use_tqdm=False)[0].outputs[0].token_ids) == 7


def test_without_a_generation_config_vllms_defaults_hold(make_llm: MakeLLM, tmp_path: Path) -> None:
    assert make_llm().get_default_sampling_params() == SamplingParams()
    other = tmp_path / "other"
    other.mkdir()
    (other / "generation_config.json").write_text('{"top_p": 0.5}')
    assert make_llm(generation_config=other).get_default_sampling_params().top_p == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"override_generation_config": {"temperature": 9}}, "can't be used as default sampling parameters: temp"),
        ({"override_generation_config": {"num_beams": 2}}, "override_generation_config has 'num_beams', which moelens"),
        ({"generation_config": "nowhere"}, "generation_config='nowhere' is no folder that holds"),
    ],
)
def test_a_generation_config_that_can_not_be_used(make_llm: MakeLLM, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_llm(**arguments)


# --- chat -------------------------------------------------------------------------------------------------------------

HELLO = [{"role": "user", "content": "hello"}]


def test_chat_renders_the_template_without_a_second_bos(make_llm: MakeLLM) -> None:
    llm = make_llm()
    (output,) = llm.chat(HELLO, SHORT, use_tqdm=False)
    assert output.prompt == "<s><|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert output.prompt_token_ids.count(0) == 1 and output.prompt_token_ids[:2] == [0, 2]


def test_chat_takes_many_conversations(make_llm: MakeLLM) -> None:
    conversations = [HELLO, [{"role": "system", "content": "be brief"}, *HELLO]]
    outputs = make_llm().chat(conversations, [SHORT, SHORT], use_tqdm=False)
    assert [output.prompt is not None and output.prompt.count("<|im_start|>") for output in outputs] == [2, 3]


def test_chat_options_reach_the_template(make_llm: MakeLLM) -> None:
    llm = make_llm()

    def prompt(messages: Any = HELLO, **options: Any) -> str:
        text = llm.chat(messages, SHORT, use_tqdm=False, **options)[0].prompt
        assert text is not None
        return text

    assert prompt(add_generation_prompt=False).endswith("hello<|im_end|>\n")
    assert prompt(chat_template_kwargs={"thinking": True}).endswith("assistant\n<think>")
    tool = {"type": "function", "function": {"name": "f", "description": "f", "parameters": {}}}
    assert "tools: 1" in prompt(tools=[tool])
    begun = [*HELLO, {"role": "assistant", "content": "I am"}]
    assert prompt(begun, add_generation_prompt=False, continue_final_message=True).endswith("assistant\nI am")
    assert prompt(chat_template="{{ messages[0].content }}!") == "hello!"
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert "user\na\nb<|im_end|>" in prompt(parts)
    openai = "{{ messages[0].content[0].text }}"
    assert prompt(chat_template=openai, chat_template_content_format="openai") == "hello"


def test_a_chat_template_may_be_a_file(make_llm: MakeLLM, tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("file {{ messages[0].content }}")
    assert make_llm(chat_template=path).chat(HELLO, SHORT, use_tqdm=False)[0].prompt == "file hello"
    with pytest.raises(ConfigError, match=r"chat_template='nowhere.jinja' is neither a file nor a Jinja template"):
        make_llm(chat_template="nowhere.jinja")


@pytest.mark.parametrize(
    ("messages", "options", "message"),
    [
        ([HELLO, [{"role": "robot", "content": "x"}]], {}, "Conversation 1: The chat template refused .*unknown role"),
        ([HELLO, []], {}, "Conversation 1: it has no messages."),
        ([[{"content": "x"}]], {}, "Conversation 0: message 0 has no 'role'."),
        (["hello"], {}, "Conversation 0: every message must be a dict"),
        ("hello", {}, "messages must be a list of .*, got str."),
        ([{"role": "user", "content": [{"type": "image_url"}]}], {}, "a content part of type 'image_url' is not"),
        (HELLO, {"continue_final_message": True}, "The chat template refused"),
    ],
)
def test_a_wrong_conversation_is_named(make_llm: MakeLLM, messages: Any, options: Any, message: str) -> None:
    llm = make_llm()
    with pytest.raises(ValidationError, match=message):
        llm.chat(messages, SHORT, use_tqdm=False, **options)
    assert not fake(llm).waiting


def test_a_wrong_content_format_is_named(make_llm: MakeLLM) -> None:
    with pytest.raises(ConfigError, match="chat_template_content_format='x' is not supported"):
        make_llm().chat(HELLO, use_tqdm=False, chat_template_content_format="x")


def test_a_model_without_a_template_says_so(make_llm: MakeLLM, model_folder: Path) -> None:
    for path in model_folder.glob("chat_template*"):
        path.unlink()
    config = json.loads((model_folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (model_folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValidationError, match="The model has no chat template: give one with chat_template="):
        make_llm().chat(HELLO, use_tqdm=False)


# --- iterating, queueing, overlapping ---------------------------------------------------------------------------------


def test_outputs_are_yielded_as_they_finish(make_llm: MakeLLM) -> None:
    llm = make_llm({"max_requests": 2})
    params = [SamplingParams(max_tokens=count, ignore_eos=True) for count in (9, 1, 5)]
    steps = []
    order = []
    for output in llm.generate_iter(["a", "b", "c"], params):
        order.append(output.prompt_index)
        steps.append(fake(llm).totals.steps)
    assert order == [1, 2, 0]
    assert steps == [1, 5, 10]


def test_nothing_happens_before_the_first_output_is_asked_for(make_llm: MakeLLM) -> None:
    llm = make_llm()
    iterator = llm.generate_iter(["a", "b"], SHORT)
    assert fake(llm).seen == []
    assert next(iterator).prompt_index in (0, 1)


def test_leaving_the_loop_aborts_the_rest(make_llm: MakeLLM) -> None:
    llm = make_llm({"max_requests": 1})
    for _ in llm.generate_iter([f"{i}" for i in range(5)], SHORT):
        break
    assert len(fake(llm).aborted) == 4
    assert not fake(llm).waiting and not fake(llm).running
    assert len(llm.generate(["a"], SHORT, use_tqdm=False)) == 1


def test_enqueued_prompts_run_when_waited_for(make_llm: MakeLLM) -> None:
    llm = make_llm()
    ids = llm.enqueue(["a", "b"], SHORT, use_tqdm=False) + llm.enqueue_chat(HELLO, SHORT, use_tqdm=False)
    assert ids == ["0", "1", "2"] and fake(llm).totals.steps == 0
    outputs = llm.wait_for_completion(use_tqdm=False)
    assert [output.request_id for output in outputs] == ids
    assert llm.wait_for_completion(use_tqdm=False) == []
    with pytest.raises(ConfigError, match="output_type=<class 'int'> is not supported"):
        llm.wait_for_completion(int, use_tqdm=False)  # type: ignore[arg-type]


def test_calls_may_overlap(make_llm: MakeLLM) -> None:
    llm = make_llm({"max_requests": 2})
    queued = llm.enqueue(["q"], SHORT, use_tqdm=False)
    first = llm.generate_iter(["a", "b", "c"], SHORT)
    seen = [next(first).prompt]
    assert [output.prompt for output in llm.generate(["x", "y"], SHORT, use_tqdm=False)] == ["x", "y"]
    seen += [output.prompt for output in first]
    assert sorted(str(prompt) for prompt in seen) == ["a", "b", "c"]
    assert [output.request_id for output in llm.wait_for_completion(use_tqdm=False)] == queued


def test_a_prompt_that_can_not_be_added_takes_its_call_along(make_llm: MakeLLM) -> None:
    llm = make_llm()
    kept = llm.enqueue(["kept"], SHORT, use_tqdm=False)
    fake(llm).refuse_after = 3
    with pytest.raises(MemoryError, match="full"):
        llm.enqueue(["a", "b", "c", "d"], SHORT, use_tqdm=False)
    fake(llm).refuse_after = None
    outputs = llm.wait_for_completion(use_tqdm=False)
    assert [output.request_id for output in outputs] == kept and outputs[0].prompt_index == 0


def test_a_sample_that_can_not_be_added_takes_its_siblings_along(make_llm: MakeLLM) -> None:
    llm = make_llm()
    fake(llm).refuse_after = 2
    with pytest.raises(MemoryError, match="full"):
        llm.generate("a", SamplingParams(n=3), use_tqdm=False)
    assert fake(llm).waiting == []


@pytest.mark.parametrize("step", range(1, 8))
@pytest.mark.parametrize("attribute", ["interrupt_at_step", "lose_report_at_step"])
def test_an_interrupt_leaves_the_llm_usable(make_llm: MakeLLM, step: int, attribute: str) -> None:
    llm = make_llm({"max_requests": 2})
    queued = llm.enqueue(["q"], SHORT, use_tqdm=False)
    setattr(fake(llm), attribute, step)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b", "c", "d", "e"], SHORT, use_tqdm=False)
    assert [output.prompt for output in llm.generate(["x", "y"], SHORT, use_tqdm=False)] == ["x", "y"]
    assert [output.request_id for output in llm.wait_for_completion(use_tqdm=False)] == queued
    assert not fake(llm).waiting and not fake(llm).running


# --- progress ---------------------------------------------------------------------------------------------------------


def test_the_bars_are_vllms(make_llm: MakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    make_llm().generate(["a", "b"], SHORT)
    shown = capsys.readouterr().err
    assert "Rendering prompts: 100%" in shown and " 2/2 [" in shown
    assert "Processed prompts: 100%" in shown
    assert "est. speed input: 0.00 toks/s, output: 0.00 toks/s" in shown


def test_use_tqdm_may_be_a_function(make_llm: MakeLLM) -> None:
    from tqdm import tqdm

    shown = io.StringIO()
    bars: list[dict[str, Any]] = []

    def factory(*args: Any, **arguments: Any) -> Any:
        bars.append(arguments)
        return tqdm(*args, **{**arguments, "file": shown})

    make_llm().chat([HELLO, HELLO], SHORT, use_tqdm=factory)
    assert [(bar["desc"], bar["total"]) for bar in bars] == [("Rendering conversations", 2), ("Processed prompts", 2)]
    assert "Processed prompts: 100%" in shown.getvalue()


# --- what moelens does not have ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"max_model_length": 5},
            "LLM() has no argument 'max_model_length'; the nearest supported argument is 'max",
        ),
        ({"pipeline_parallel_size": 1}, "does not support vLLM's argument 'pipeline_parallel_size': one process runs"),
        ({"cpu_offload_gb": 3}, "does not support vLLM's argument 'cpu_offload_gb': what lies where is planned"),
        ({"swap_space": 3}, "vLLM has removed it"),
        ({"logprobs_mode": "x"}, "always the model's own"),
        ({"disable_log_stats": True}, "see get_metrics()"),
    ],
)
def test_an_unknown_argument_names_the_nearest(make_llm: MakeLLM, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        make_llm(**arguments)
    assert message in str(caught.value)
    assert "nearest supported argument is '" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trust_remote_code": True}, "trust_remote_code=True is refused: moelens never runs code"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size=2 is not supported: one process"),
        (
            {"quantization": "awq"},
            "quantization='awq' is not supported: weights are quantised by moelens .* Use 'int8'",
        ),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype='fp8' is not supported with dtype='auto'"),
        ({"gpu_memory_utilization": 1.5}, r"gpu_memory_utilization must be in \(0, 1\], got 1.5"),
        ({"max_logprobs": -2}, "max_logprobs must be non-negative or -1"),
        ({"device": "gpu"}, "device='gpu' is not supported"),
        ({"gpu_memory_bytes": 1}, "gpu_memory_bytes is for device='cuda', and device is 'auto'"),
        ({"dtype": "half"}, "dtype='float16' is not supported"),
        ({"dtype": torch.float16}, "dtype='float16' is not supported"),
        ({"tokenizer_mode": "mistral"}, "tokenizer_mode='mistral' is not supported"),
        ({"tokenizer": "x", "skip_tokenizer_init": True}, "exclude each other"),
    ],
)
def test_a_value_that_is_not_supported_is_refused(make_llm: MakeLLM, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_llm(**arguments)


def test_what_has_no_effect_is_said(make_llm: MakeLLM, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="moelens"):
        make_llm(enforce_eager=True, gpu_memory_utilization=0.9, kv_cache_dtype="float32", dtype=torch.float32)
    assert "enforce_eager=True has no effect" in caplog.text
    assert "gpu_memory_utilization=0.9 has no effect" in caplog.text


def test_options_reach_the_engine(make_llm: MakeLLM, tmp_path: Path) -> None:
    llm = make_llm(
        dtype="float", seed=4, max_num_seqs=8, num_threads=2, hf_overrides={"a": 1}, download_dir=tmp_path,
        load_format="dummy", use_tqdm_on_load=False, cpu_memory_bytes=10**9,
    )  # fmt: skip
    engine: Any = fake(llm)
    assert engine.options == EngineOptions(
        str(engine.options.model), "float32", 4, max_num_seqs=8, num_threads=2, hf_overrides={"a": 1},
        download_dir=str(tmp_path), load_format="dummy", cpu_memory_bytes=10**9,
    )  # fmt: skip
    assert engine.show_progress is False


def test_another_tokenizer_may_be_given(make_llm: MakeLLM, byte_tokenizer_folder: Path, tmp_path: Path) -> None:
    assert make_llm(tokenizer=byte_tokenizer_folder).get_tokenizer().eos_token == "</s>"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match=r"No tokenizer can be loaded from .*empty"):
        make_llm(tokenizer=empty)


@pytest.mark.parametrize("name", ["beam_search", "embed", "encode", "sleep", "collective_rpc"])
def test_absent_methods_name_the_alternative(make_llm: MakeLLM, name: str) -> None:
    llm = make_llm()
    with pytest.raises(UnsupportedCallError, match=rf"LLM\.{name}\(\) is not supported by moelens: .+\."):
        getattr(llm, name)("x")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        llm.nothing  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("argument", ["lora_request", "priority", "mm_processor_kwargs"])
def test_call_arguments_that_mean_nothing_here_are_refused(make_llm: MakeLLM, argument: str) -> None:
    with pytest.raises(ValidationError, match=f"^{argument} is not supported: .*Leave it out"):
        make_llm().generate("a", SHORT, use_tqdm=False, **{argument: [1]})


def test_engine_counts_are_metrics(make_llm: MakeLLM) -> None:
    llm = make_llm()
    llm.generate("a", SHORT, use_tqdm=False)
    fake(llm).totals.stage_seconds["attend decodes"] = 2.0
    metrics = {metric.name: metric.value for metric in llm.get_metrics()}
    assert metrics["moelens:steps"] == 3
    assert metrics["moelens:attend_decodes_seconds"] == 2.0
    assert metrics["moelens:num_requests_running"] == metrics["moelens:num_requests_waiting"] == 0
    assert metrics["moelens:kv_cache_usage_perc"] == 0.25


def test_tokenization_kwargs_reach_the_tokenizer(make_llm: MakeLLM) -> None:
    llm = make_llm()
    plain, cut = (
        llm.generate("abcdef", SHORT, use_tqdm=False, tokenization_kwargs=kwargs)[0].prompt_token_ids
        for kwargs in ({"add_special_tokens": False}, {"truncation": True, "max_length": 3})
    )
    assert len(plain) == 6 and len(cut) == 3
    with pytest.raises(ValidationError, match="The tokenizer refused the prompts with tokenization_kwargs="):
        llm.generate("a", SHORT, use_tqdm=False, tokenization_kwargs={"truncation": "sideways"})


def test_a_million_prompts_cost_little_each(make_llm: MakeLLM) -> None:
    """Counted on a few thousand: what a waiting prompt holds beside its tokens."""
    import tracemalloc

    llm = make_llm({"max_requests": 1})
    llm.enqueue([[5]], SHORT, use_tqdm=False)
    prompts = [[5] for _ in range(5000)]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    llm.enqueue(prompts, SHORT, use_tqdm=False)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown / len(prompts) < 1000
    assert len(list(itertools.islice(fake(llm).waiting, 10))) == 10
