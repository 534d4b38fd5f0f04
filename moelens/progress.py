"""Progress bars, as vLLM draws them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

REFRESH_SECONDS = 0.2

BarFactory = Callable[..., Any]  # tqdm, or whatever takes its arguments and has its methods


def bar_factory(use_tqdm: bool | BarFactory) -> BarFactory | None:
    """What makes the bars: None for no bars, tqdm for True, or what the caller gave."""
    if callable(use_tqdm):
        return use_tqdm
    if not use_tqdm:
        return None
    from tqdm.auto import tqdm

    return tqdm


def rendering_bar(factory: BarFactory | None, total: int, description: str) -> Any | None:
    """A bar of prompts that become tokens."""
    return None if factory is None else factory(total=total, desc=description, dynamic_ncols=True)


class GenerationBar:
    """Counts finished prompts, and shows how many tokens a second go in and out.

    The speeds count every step's tokens, so the bar lives from the first step on even when no prompt ends for an hour.
    """

    def __init__(
        self,
        factory: BarFactory | None,
        total: int,
        clock: Callable[[], float] = time.monotonic,
        forecast: Callable[[], str] = str,
    ) -> None:
        """`forecast` says what is expected of the rest, or nothing."""
        self._clock = clock
        self._forecast = forecast
        self._begin = self._shown = clock()
        self._prompt_tokens = 0
        self._output_tokens = 0
        self._bar = None
        if factory is not None:
            self._bar = factory(
                total=total, desc="Processed prompts", dynamic_ncols=True, postfix=self._postfix(0.0, 0.0)
            )

    def advance(self, finished: int, prompt_tokens: int, output_tokens: int) -> None:
        """Count one step."""
        self._prompt_tokens += prompt_tokens
        self._output_tokens += output_tokens
        if self._bar is None:
            return
        now = self._clock()
        due = now - self._shown >= REFRESH_SECONDS
        if due or finished:
            seconds = max(now - self._begin, 1e-9)
            speeds = self._prompt_tokens / seconds, self._output_tokens / seconds
            self._bar.set_postfix_str(self._postfix(*speeds), refresh=False)
        if finished:
            self._bar.update(finished)
        elif due:
            self._bar.refresh()
        if due:
            self._shown = now

    def _postfix(self, prompt_tokens_per_second: float, output_tokens_per_second: float) -> str:
        expected = self._forecast()
        return _speeds(prompt_tokens_per_second, output_tokens_per_second) + (f", {expected}" if expected else "")

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def _speeds(prompt_tokens_per_second: float, output_tokens_per_second: float) -> str:
    return f"est. speed input: {prompt_tokens_per_second:.2f} toks/s, output: {output_tokens_per_second:.2f} toks/s"
