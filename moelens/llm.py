"""`LLM`: a loaded model that turns prompts into text, with vLLM's methods."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from moelens.arguments import ABSENT_METHODS, check_fixed, dtype_name, refuse_arguments, refuse_call_arguments
from moelens.checkpoint.source import find_checkpoint, find_settings
from moelens.cost.workload import Workload
from moelens.defaults import recommended_fields
from moelens.errors import ConfigError, UnsupportedCallError
from moelens.forecasting import forecasting
from moelens.metrics import engine_metrics
from moelens.options import EngineOptions
from moelens.outputs import Metric, RequestOutput
from moelens.pipeline.drawing import write_timeline
from moelens.pipeline.timeline import Timeline
from moelens.plan import Plan
from moelens.progress import BarFactory, GenerationBar, bar_factory, rendering_bar
from moelens.sampling_params import SamplingParams
from moelens.session import Call, Params, Session
from moelens.text.chat import ChatOptions, list_conversations, read_chat_template, render_conversation
from moelens.text.prompts import Prompt, list_prompts, render_prompts
from moelens.text.tokenizer import Message, Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from moelens.engine import Engine


class LLM:
    """A Mixture-of-Experts model, its tokenizer and the memory for the requests that run.

    `model` is a folder or a hub id. What is left at None is chosen, around all that is given (`plan_reasons` says why).
    Arguments have vLLM's names and defaults; `device`, `cpu_memory_bytes`, `cpu_weights_memory_bytes`, `num_threads`,
    `shared_weights_dir`, `plan` and those of a `Plan` for a device (`parts`, `ring_layers`, `load_chunks`,
    `resident_layers`, `experts_on_host`) are moelens' own. Where weights don't fit in `cpu_memory_bytes` (None: most of
    what is available), or in `cpu_weights_memory_bytes` of it, experts are read from files in every step.
    `quantization` is None or "int8", for weights that are quantised as they are loaded: faster, a little less exact.
    Processes with the same `shared_weights_dir`, a folder of a local disk, have one copy of the weights in memory.

    Raises TypeError for an argument that does not exist here (with the nearest that does), and ConfigError,
    CheckpointError, UnsupportedModelError or CapacityError when the model can't be run as asked.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        tokenizer: str | os.PathLike[str] | None = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str | torch.dtype = "auto",
        quantization: str | None = None,
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        chat_template: str | os.PathLike[str] | None = None,
        seed: int = 0,
        gpu_memory_utilization: float | None = None,
        gpu_memory_bytes: int | None = None,
        enforce_eager: bool = False,
        hf_token: str | bool | None = None,
        hf_overrides: Mapping[str, Any] | None = None,
        kv_cache_memory_bytes: int | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
        kv_cache_dtype: str = "auto",
        enable_prefix_caching: bool | None = None,
        load_format: str = "auto",
        download_dir: str | os.PathLike[str] | None = None,
        generation_config: str | os.PathLike[str] = "auto",
        override_generation_config: Mapping[str, Any] | None = None,
        max_logprobs: int = 20,
        use_tqdm_on_load: bool = True,
        device: str = "auto",
        cpu_memory_bytes: int | None = None,
        cpu_weights_memory_bytes: int | None = None,
        num_threads: int | None = None,
        shared_weights_dir: str | os.PathLike[str] | None = None,
        block_size: int | None = None,
        parts: int | None = None,
        ring_layers: int | None = None,
        load_chunks: int | None = None,
        resident_layers: int | None = None,
        experts_on_host: bool | None = None,
        plan: Plan | None = None,
        **unsupported: object,
    ) -> None:
        refuse_arguments(unsupported, LLM.__init__)
        check_fixed(
            trust_remote_code=trust_remote_code,
            tensor_parallel_size=tensor_parallel_size,
            kv_cache_dtype=kv_cache_dtype,
            dtype=dtype_name(dtype),
            gpu_memory_utilization=gpu_memory_utilization,
            enforce_eager=enforce_eager,
            max_logprobs=max_logprobs,
            device=device,
        )
        options = EngineOptions(
            model=os.fspath(model),
            dtype=dtype_name(dtype),
            quantization=quantization,
            seed=seed,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            kv_cache_memory_bytes=kv_cache_memory_bytes,
            cpu_memory_bytes=cpu_memory_bytes,
            cpu_weights_memory_bytes=cpu_weights_memory_bytes,
            num_threads=num_threads,
            enable_prefix_caching=enable_prefix_caching is not False,
            device=device,
            gpu_memory_utilization=gpu_memory_utilization,
            gpu_memory_bytes=gpu_memory_bytes,
            load_format=load_format,
            revision=revision,
            hf_token=hf_token,
            hf_overrides=hf_overrides,
            download_dir=None if download_dir is None else os.fspath(download_dir),
            shared_weights_dir=None if shared_weights_dir is None else os.fspath(shared_weights_dir),
            block_size=block_size,
            parts=parts,
            ring_layers=ring_layers,
            load_chunks=load_chunks,
            resident_layers=resident_layers,
            experts_on_host=experts_on_host,
            plan=plan,
        )
        self._chat_template = read_chat_template(chat_template)
        if skip_tokenizer_init and tokenizer is not None:
            raise ConfigError(
                f"tokenizer={os.fspath(tokenizer)!r} and skip_tokenizer_init=True exclude each other: leave one out."
            )
        folder = _find_model(options)
        self._recommended = recommended_fields(folder, generation_config, override_generation_config)
        self._tokenizer: Tokenizer | None = None
        if not skip_tokenizer_init:
            tokenizer_folder = folder if tokenizer is None else _find_tokenizer(tokenizer, tokenizer_revision, options)
            self._tokenizer = load_tokenizer(tokenizer_folder, mode=tokenizer_mode)
        from moelens.assembly import build_engine  # the kernels; errors above should not need them

        self.engine: Engine = build_engine(options, folder, self._tokenizer, show_progress=use_tqdm_on_load)
        self.session = Session(self.engine, self._tokenizer, seed=seed, max_logprobs=max_logprobs)
        self._queued = Call()

    def generate(
        self,
        prompts: Prompt | Iterable[Prompt],
        sampling_params: Params | None = None,
        *,
        use_tqdm: bool | BarFactory = True,
        lora_request: None = None,
        priority: None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: None = None,
    ) -> list[RequestOutput]:
        """The outputs of all prompts, in their order.

        A prompt is a str, a list of token ids, a TextPrompt or a TokensPrompt; text gets the special tokens that the
        tokenizer adds. `sampling_params` is one for all or a list of as many; None takes the model's recommendation.
        `use_tqdm` may be a function that makes the bars. An interrupt leaves the LLM usable.

        Raises ValidationError before anything is computed when a prompt or parameter is wrong.
        """
        refuse_call_arguments(lora_request=lora_request, priority=priority, mm_processor_kwargs=mm_processor_kwargs)
        call = Call()
        self._submit(call, prompts, sampling_params, use_tqdm, tokenization_kwargs)
        return self._finish(call, use_tqdm)

    def generate_iter(
        self,
        prompts: Prompt | Iterable[Prompt],
        sampling_params: Params | None = None,
        *,
        use_tqdm: bool | BarFactory = False,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> Iterator[RequestOutput]:
        """Like `generate`, but yields each output as soon as it is complete; `prompt_index` says which it is.

        Work begins with the first output asked for; leaving the loop aborts the rest.
        """
        call = Call()
        self._submit(call, prompts, sampling_params, use_tqdm, tokenization_kwargs)
        with forecasting(self.engine, self.choose_plan(call), wanted=bool(use_tqdm)) as forecast:
            bar = GenerationBar(bar_factory(use_tqdm), call.submitted, forecast=forecast)
            yield from self.session.results(call, bar)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: Params | None = None,
        use_tqdm: bool | BarFactory = True,
        lora_request: None = None,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: None = None,
    ) -> list[RequestOutput]:
        """The replies to one conversation or several, in their order.

        A conversation is a list of {"role": …, "content": …}. The template writes the special tokens, so none are added
        again. Raises ValidationError as `generate` does, and when the template refuses.
        """
        refuse_call_arguments(lora_request=lora_request, mm_processor_kwargs=mm_processor_kwargs)
        options = ChatOptions(
            chat_template=self._template(chat_template),
            content_format=chat_template_content_format,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            template_kwargs=chat_template_kwargs,
        )
        call = Call()
        self._submit_chat(call, messages, sampling_params, use_tqdm, options, tokenization_kwargs)
        return self._finish(call, use_tqdm)

    def enqueue(
        self,
        prompts: Prompt | Iterable[Prompt],
        sampling_params: Params | None = None,
        *,
        use_tqdm: bool | BarFactory = True,
        lora_request: None = None,
        priority: None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: None = None,
    ) -> list[str]:
        """Queue prompts without running them; returns their request ids. `wait_for_completion` runs them."""
        refuse_call_arguments(lora_request=lora_request, priority=priority, mm_processor_kwargs=mm_processor_kwargs)
        return self._submit(self._queued, prompts, sampling_params, use_tqdm, tokenization_kwargs)

    def enqueue_chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: Params | None = None,
        use_tqdm: bool | BarFactory = True,
        lora_request: None = None,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: None = None,
    ) -> list[str]:
        """Queue conversations without running them; returns their request ids. `wait_for_completion` runs them."""
        refuse_call_arguments(lora_request=lora_request, mm_processor_kwargs=mm_processor_kwargs)
        options = ChatOptions(
            chat_template=self._template(chat_template),
            content_format=chat_template_content_format,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            template_kwargs=chat_template_kwargs,
        )
        return self._submit_chat(self._queued, messages, sampling_params, use_tqdm, options, tokenization_kwargs)

    def wait_for_completion(
        self, output_type: type[RequestOutput] | None = None, *, use_tqdm: bool | BarFactory = True
    ) -> list[RequestOutput]:
        """The outputs of everything queued since the last call, in the order of queueing."""
        if output_type not in (None, RequestOutput):
            raise ConfigError(f"output_type={output_type!r} is not supported: moelens gives RequestOutput only.")
        call, self._queued = self._queued, Call()
        return self._finish(call, use_tqdm)

    def get_tokenizer(self) -> Any:
        """The tokenizer, transformers' own object.

        Raises ConfigError when there is none.
        """
        return self._needed_tokenizer().hf

    def get_default_sampling_params(self) -> SamplingParams:
        """What is used where no sampling parameters are given: the model's generation_config.json over the defaults."""
        return SamplingParams(**self._recommended)

    def get_metrics(self) -> list[Metric]:
        """The engine's counts since the beginning, and its state."""
        return engine_metrics(self.engine)

    @property
    def plan(self) -> Plan:
        """How the model is run, by what the last call asked for; tokens do not depend on it."""
        return self.engine.plan

    @property
    def plan_reasons(self) -> tuple[str, ...]:
        """Why it is run so."""
        return self.engine.chooser.reasons if self.engine.chooser is not None else ()

    def choose_plan(self, call: Call) -> Workload | None:
        """Choose the plan anew for the unfinished requests of `call`, and return what these are."""
        workload = self.session.workload(call)
        if workload is not None and self.engine.chooser is not None:
            self.engine.chooser.choose(workload)
        return workload

    def start_timeline(self) -> None:
        """From now on, remember when each task of each step ran; what was remembered before is dropped."""
        self.engine.recorded_timeline = Timeline()

    def write_timeline(self, path: str | os.PathLike[str]) -> None:
        """Write what ran since `start_timeline`: a trace for Perfetto to a .json file, a picture to a .png file.

        Raises ConfigError when nothing was recorded, for another ending, or where a picture lacks matplotlib.
        """
        if self.engine.recorded_timeline is None:
            raise ConfigError("Nothing was recorded: call start_timeline() before generate().")
        write_timeline(self.engine.recorded_timeline, Path(path))

    def reset_prefix_cache(self) -> bool:
        """Forget what is kept of finished prompts for later ones that begin alike; always succeeds."""
        self.engine.scheduler.forget_prefixes()
        return True

    if not TYPE_CHECKING:  # a type checker should go on to report unknown attributes

        def __getattr__(self, name: str) -> Callable[..., NoReturn]:
            if name not in ABSENT_METHODS:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

            def refuse(*_: object, **__: object) -> NoReturn:
                raise UnsupportedCallError(f"LLM.{name}() is not supported by moelens: {ABSENT_METHODS[name]}.")

            return refuse

    def _submit(
        self,
        call: Call,
        prompts: Prompt | Iterable[Prompt],
        params: Params | None,
        use_tqdm: bool | BarFactory,
        tokenization_kwargs: Mapping[str, Any] | None,
    ) -> list[str]:
        listed = list_prompts(prompts)
        rendered = render_prompts(listed, self._tokenizer, self.session.limits, tokenization_kwargs)
        bar = rendering_bar(bar_factory(use_tqdm), len(listed), "Rendering prompts")
        return self.session.submit_all(call, rendered, len(listed), self._params(params), bar)

    def _submit_chat(
        self,
        call: Call,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: Params | None,
        use_tqdm: bool | BarFactory,
        options: ChatOptions,
        tokenization_kwargs: Mapping[str, Any] | None,
    ) -> list[str]:
        tokenizer = self._needed_tokenizer()
        conversations = list_conversations(messages)
        texts = [render_conversation(one, index, tokenizer, options) for index, one in enumerate(conversations)]
        encoding = {**(tokenization_kwargs or {}), "add_special_tokens": False}  # the template has written them
        rendered = render_prompts(texts, tokenizer, self.session.limits, encoding)
        bar = rendering_bar(bar_factory(use_tqdm), len(texts), "Rendering conversations")
        return self.session.submit_all(call, rendered, len(texts), self._params(params), bar)

    def _finish(self, call: Call, use_tqdm: bool | BarFactory) -> list[RequestOutput]:
        total = call.unfinished + len(call.ready)
        with forecasting(self.engine, self.choose_plan(call), wanted=bool(use_tqdm)) as forecast:
            bar = GenerationBar(bar_factory(use_tqdm), total, forecast=forecast)
            return sorted(self.session.results(call, bar), key=lambda output: output.prompt_index)

    def _params(self, params: Params | None) -> Params:
        return self.get_default_sampling_params() if params is None else params

    def _template(self, chat_template: str | None) -> str | None:
        return self._chat_template if chat_template is None else read_chat_template(chat_template)

    def _needed_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise ConfigError("There is no tokenizer, as skip_tokenizer_init=True was given: leave it out.")
        return self._tokenizer


def _find_model(options: EngineOptions) -> Path:
    find = find_settings if options.load_format == "dummy" else find_checkpoint
    return find(options.model, revision=options.revision, token=options.hf_token, download_dir=options.download_dir)


def _find_tokenizer(tokenizer: str | os.PathLike[str], revision: str | None, options: EngineOptions) -> Path:
    return find_settings(tokenizer, revision=revision, token=options.hf_token, download_dir=options.download_dir)
