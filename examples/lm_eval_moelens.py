"""moelens as a model of EleutherAI's lm-eval: register it, and run lm-eval's own command line.

    pip install lm-eval
    python examples/lm_eval_moelens.py --model moelens --model_args pretrained=path/to/model --tasks arc_easy

All of `LLM`'s arguments may stand in --model_args. Importing this module is enough to have "moelens" in lm-eval's
`simple_evaluate`.
"""

from __future__ import annotations

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from moelens import LLM, RequestOutput, SamplingParams

Scored = tuple[Any, list[int], list[int]]  # (texts or None, context, continuation)


@register_model("moelens")
class MoelensLM(TemplateLM):
    """`pretrained` is the model; everything else goes to LLM, but for what lm-eval adds for other models."""

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        device: str | None = None,
        max_gen_toks: int = 256,
        **arguments: Any,
    ) -> None:
        super().__init__()
        self.llm = LLM(pretrained, use_tqdm_on_load=False, **arguments)
        self.tokenizer = self.llm.get_tokenizer()
        self.max_length = self.llm.engine.max_model_len
        self.max_gen_toks = max_gen_toks

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        if add_special_tokens is None:  # a chat template has written it already
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and string.startswith(bos))
        return list(self.tokenizer(string, add_special_tokens=add_special_tokens)["input_ids"])

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def _loglikelihood_tokens(
        self, requests: list[Scored], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log-probabilities of continuations, from those of whole prompts; the context is cut from the left to fit."""
        prompts = [(context + continuation)[-(self.max_length - 1) :] for _, context, continuation in requests]
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        outputs = self.llm.generate(prompts, params, use_tqdm=not disable_tqdm)
        return [
            _score(output, len(continuation)) for (_, _, continuation), output in zip(requests, outputs, strict=True)
        ]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        windows: list[Scored] = []
        counts = []
        for (text,) in (request.args for request in requests):
            cut = get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 2,
                context_len=1,
            )
            of_text = [(None, *make_disjoint_window(window)) for window in cut]
            windows += of_text
            counts.append(len(of_text))
        scores = iter(self._loglikelihood_tokens(windows, disable_tqdm))
        return [sum(next(scores)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        prompts, params = [], []
        for context, given in (request.args for request in requests):
            fields = dict(normalize_gen_kwargs(given, self.max_gen_toks))
            fields.pop("do_sample", None)
            fields["stop"], fields["max_tokens"] = fields.pop("until", None), fields.pop("max_gen_toks")
            room = self.max_length - fields["max_tokens"]
            prompts.append(self.tok_encode(context)[-max(1, room) :])
            params.append(SamplingParams(**fields))
        outputs = self.llm.generate(prompts, params, use_tqdm=not disable_tqdm)
        return [output.outputs[0].text for output in outputs]


def _score(output: RequestOutput, count: int) -> tuple[float, bool]:
    """The sum of the last `count` tokens' log-probabilities, and whether each was the likeliest."""
    assert output.prompt_logprobs is not None and output.prompt_token_ids is not None
    total, greedy = 0.0, True
    scored = list(zip(output.prompt_token_ids, output.prompt_logprobs, strict=True))
    for token_id, entry in scored[len(scored) - count :]:
        assert entry is not None, "a continuation has at least a token before it"
        total += entry[token_id].logprob
        greedy = greedy and entry[token_id].rank == 1
    return total, greedy


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
