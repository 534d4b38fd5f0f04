"""From the finished requests of a prompt to the record that the caller gets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from moelens.outputs import CompletionOutput, Logprob, RequestOutput, RequestStateStats
from moelens.request import Request
from moelens.stopping import final_text
from moelens.text.tokenizer import Tokenizer


def make_output(
    request_id: int, prompt_index: int, prompt: str | None, requests: Sequence[Request], tokenizer: Tokenizer | None
) -> RequestOutput:
    """The output of a prompt whose samples are `requests`; `prompt` is its text, if it is known."""
    first = requests[0]
    prompt_logprobs = first.prompt_logprobs
    if prompt_logprobs is None and first.params.prompt_logprobs is not None:
        prompt_logprobs = [None]  # a prompt of one token
    if tokenizer is not None and first.params.detokenize:
        _name_tokens((entry for entry in prompt_logprobs or () if entry is not None), tokenizer)
    return RequestOutput(
        request_id=str(request_id),
        prompt=prompt,
        prompt_token_ids=first.prompt_token_ids.tolist(),
        prompt_logprobs=prompt_logprobs,
        outputs=[_completion(index, request, tokenizer) for index, request in enumerate(requests)],
        finished=True,
        metrics=_metrics(requests),
        num_cached_tokens=first.num_cached_tokens,
        prompt_index=prompt_index,
    )


def _completion(index: int, request: Request, tokenizer: Tokenizer | None) -> CompletionOutput:
    logprobs = request.logprobs
    if logprobs is None and request.params.num_logprobs is not None:
        logprobs = []  # it ended before its first token
    text = ""
    if tokenizer is not None and request.params.detokenize:
        _name_tokens(logprobs or (), tokenizer)
        text = final_text(tokenizer, request)
    return CompletionOutput(
        index=index,
        text=text,
        token_ids=request.output_token_ids.tolist(),
        cumulative_logprob=None if logprobs is None else request.cumulative_logprob,
        logprobs=logprobs,
        finish_reason=request.finish_reason,
        stop_reason=request.stop_reason,
    )


def _name_tokens(entries: Iterable[dict[int, Logprob]], tokenizer: Tokenizer) -> None:
    for entry in entries:
        for token_id, logprob in entry.items():
            logprob.decoded_token = tokenizer.decode([token_id], skip_special_tokens=False)


def _metrics(requests: Sequence[Request]) -> RequestStateStats:
    arrival = requests[0].arrival_time
    started = [request.first_token_time for request in requests if request.first_token_time]
    return RequestStateStats(
        num_generation_tokens=sum(request.num_output_tokens for request in requests),
        arrival_time=arrival,
        first_token_ts=min(started, default=0.0),
        last_token_ts=max(request.last_token_time for request in requests),
        first_token_latency=min(started) - arrival if started else 0.0,
        preemptions=sum(request.preemptions for request in requests),
    )
