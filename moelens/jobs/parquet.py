"""Parquet files as input and output, by pyarrow, which is an extra."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moelens.errors import JobError
from moelens.jobs.identity import file_digest
from moelens.jobs.ordering import ordered_lines
from moelens.jobs.records import Line
from moelens.jobs.results import sync_folder

ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class ParquetRows:
    """The rows of a Parquet file; a column is a field, and null is a field left out."""

    path: Path

    def __post_init__(self) -> None:
        require_pyarrow(self.path)

    def lines(self) -> Iterator[Line]:
        """Rows are counted from 1."""
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                rows = (row for batch in file.iter_batches(batch_size=ROWS_AT_ONCE) for row in batch.to_pylist())
                for number, row in enumerate(rows, 1):
                    yield Line(number, without_nulls(row))
        except (pyarrow.ArrowException, OSError) as error:
            raise JobError(f"input {str(self.path)!r} is no sound Parquet file: {error}.") from error

    def digest(self) -> Mapping[str, Any]:
        """Size and SHA-256."""
        return file_digest(self.path)


def require_pyarrow(path: Path) -> None:
    """Raise JobError when pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise JobError(
            f"{str(path)!r} is a Parquet file, which needs pyarrow: pip install 'moelens[parquet]'"
        ) from error


def without_nulls(value: Any) -> Any:
    """The value without the nulls that Parquet's structs have for every key that a row lacks."""
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items() if one is not None}
    if isinstance(value, list):
        return [without_nulls(one) for one in value]
    return value


def write_parquet(results: Path, target: Path) -> None:
    """Write the lines of `results` as the rows of `target`, in the order of the input.

    The columns are line, custom_id, text and finish_reason (of the first output), texts (of all), prompt_tokens,
    completion_tokens, error (null where there is none) and result, the line itself. `target` is whole or untouched.
    """
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema(
        [
            ("line", pyarrow.int64()),
            ("custom_id", pyarrow.string()),
            ("text", pyarrow.string()),
            ("finish_reason", pyarrow.string()),
            ("texts", pyarrow.list_(pyarrow.string())),
            ("prompt_tokens", pyarrow.int64()),
            ("completion_tokens", pyarrow.int64()),
            ("error", pyarrow.string()),
            ("result", pyarrow.string()),
        ]
    )
    unfinished = target.with_name(f"{target.name}.unfinished")
    try:
        with pyarrow.parquet.ParquetWriter(unfinished, schema) as writer:
            rows: list[dict[str, Any]] = []
            for number, line in ordered_lines(results):
                rows.append(_row(number, line))
                if len(rows) == ROWS_AT_ONCE:
                    writer.write_table(pyarrow.Table.from_pylist(rows, schema))
                    rows.clear()
            if rows:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(target)
        sync_folder(target.parent)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def _row(number: int, line: bytes) -> dict[str, Any]:
    result = json.loads(line)
    body = (result.get("response") or {}).get("body") or {}
    outputs = result.get("outputs") or [
        {**choice, "text": choice.get("text", choice.get("message", {}).get("content"))}
        for choice in body.get("choices", ())
    ]
    usage = result.get("usage") or body.get("usage") or {}
    return {
        "line": number,
        "custom_id": result["custom_id"],
        "text": outputs[0]["text"] if outputs else None,
        "finish_reason": outputs[0]["finish_reason"] if outputs else None,
        "texts": [output["text"] for output in outputs] if outputs else None,
        "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": usage.get("completion_tokens"),
        "error": result["error"]["message"] if result["error"] else None,
        "result": line.decode().rstrip("\n"),
    }
