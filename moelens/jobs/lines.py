"""Lines of a job without its files: for programs that read, distribute and write them in their own way."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moelens.jobs.job import WINDOW_STEPS
from moelens.jobs.model import find_model
from moelens.jobs.options import JobOptions
from moelens.jobs.records import Line
from moelens.jobs.run import run_lines
from moelens.jobs.sources import BOM
from moelens.llm import LLM


class LineRunner:
    """A loaded model that answers lines as `run_batch` does, to the same bytes, whichever process does it.

    Arguments are those of `run_batch`; `engine` are LLM's. Raises what LLM raises.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        seed: int = 0,
        sampling_defaults: Mapping[str, Any] | None = None,
        served_model_name: Sequence[str] = (),
        **engine: Any,
    ) -> None:
        options = JobOptions(
            Path(),
            Path(),
            os.fspath(model),
            seed=seed,
            sampling_defaults=dict(sampling_defaults or {}),
            served_model_name=served_model_name,
            engine=engine,
        )
        self._parser = find_model(options).parser(seed)
        self._llm = LLM(model, seed=seed, **engine)

    def run(self, lines: Iterable[tuple[int, bytes]]) -> list[bytes]:
        """The result of each line, which is given with its number in the file, counted from 1; in their order.

        Two lines of one custom_id are not noticed, as the whole file is not seen.
        """
        window = WINDOW_STEPS * self._llm.engine.plan.max_requests
        numbered = (Line(number, text.removeprefix(BOM) if number == 1 else text) for number, text in lines)
        return run_lines(numbered, self._parser, self._llm, window=window)
