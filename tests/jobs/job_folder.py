"""An input, an output and a model in a folder, and lines for the input."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from moelens.jobs.job import run_job
from moelens.jobs.options import JobOptions, JobReport


class Folder:
    """An input, an output and a model, and jobs that run one into the other."""

    def __init__(self, path: Path, model: Path) -> None:
        self.input = path / "in.jsonl"
        self.output = path / "out.jsonl"
        self.model = model

    def write(self, lines: Iterable[object]) -> None:
        """Make the input of JSON values, and of texts and bytes as they are."""
        with self.input.open("wb") as file:
            for line in lines:
                content = line if isinstance(line, (str, bytes)) else json.dumps(line)
                file.write((content.encode() if isinstance(content, str) else content) + b"\n")

    def options(self, **options: Any) -> JobOptions:
        return JobOptions(**{"input": self.input, "output": self.output, "model": str(self.model), **options})

    def run(self, **options: Any) -> JobReport:
        return run_job(self.options(**options))

    def results(self) -> dict[int, dict[str, Any]]:
        """The parsed results by the number of their line; each is there once."""
        parsed = [json.loads(line) for line in self.raw()]
        found = {int(result["id"].removeprefix("moelens-")): result for result in parsed}
        assert len(found) == len(parsed), "a line has two results"
        return found

    def raw(self) -> Sequence[bytes]:
        content = self.output.read_bytes()
        assert content.endswith(b"\n") or not content
        return content.splitlines(keepends=True)


def requests(count: int) -> list[dict[str, Any]]:
    """Chats, completions and plain prompts of different lengths."""
    lines: list[dict[str, Any]] = []
    for i in range(count):
        body: dict[str, Any] = {"max_tokens": 1 + i * 7 % 11, "ignore_eos": True}
        if i % 3 == 0:
            body["messages"] = [{"role": "user", "content": f"hi {i}"}]
            lines.append({"custom_id": f"a{i}", "method": "POST", "url": "/v1/chat/completions", "body": body})
        elif i % 3 == 1:
            body["prompt"] = f"hi {i}"
            lines.append({"custom_id": f"a{i}", "method": "POST", "url": "/v1/completions", "body": body})
        else:
            lines.append({"prompt": f"hi {i}", "n": 2, **body})
    return lines
