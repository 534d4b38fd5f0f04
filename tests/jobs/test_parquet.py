"""Parquet rows in, Parquet rows out, and what is said without pyarrow."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from job_folder import Folder, requests

from moelens.errors import JobError
from moelens.jobs.parquet import without_nulls

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def test_rows_are_lines_and_null_is_a_field_left_out(folder: Folder, tmp_path: Path) -> None:
    rows = [
        {"custom_id": "a", "prompt": "hi", "max_tokens": 2, "temperature": None, "messages": None},
        {"custom_id": "b", "prompt": None, "max_tokens": 3, "messages": [{"role": "user", "content": "hi"}]},
        {"custom_id": None, "prompt": "hi", "max_tokens": 0, "temperature": 0.5, "messages": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    report = folder.run(input=tmp_path / "in.parquet")
    results = folder.results()
    assert report.failed == 1
    assert [results[i]["custom_id"] for i in (1, 2, 3)] == ["a", "b", "3"]
    assert results[3]["error"]["message"] == "max_tokens must be at least 1, got 0."
    assert results[2]["usage"]["completion_tokens"] == 3


def test_parquet_out_has_a_row_for_every_line_in_order(folder: Folder, tmp_path: Path) -> None:
    folder.write([*requests(9), "?"])
    output = tmp_path / "out.parquet"
    folder.run(output=output)
    folder.run()
    lines = folder.results()
    table = pq.read_table(output)
    assert table.column("line").to_pylist() == list(range(1, 11))
    for row in table.to_pylist():
        result = json.loads(row["result"])
        assert result == lines[row["line"]]
        assert row["custom_id"] == result["custom_id"]
        if row["line"] == 10:
            assert row["text"] is None and "not valid JSON" in row["error"] and row["prompt_tokens"] is None
            continue
        body = result.get("response", {}).get("body")
        outputs = body["choices"] if body else result["outputs"]
        texts = [one.get("text", one.get("message", {}).get("content")) for one in outputs]
        assert row["texts"] == texts and row["text"] == texts[0] and row["error"] is None
        assert row["completion_tokens"] == (body or result)["usage"]["completion_tokens"]
        assert row["finish_reason"] == "length"


def test_a_parquet_output_is_resumed_and_made_again(folder: Folder, tmp_path: Path, engines: list[FakeEngine]) -> None:
    folder.write(requests(9))
    output, results = tmp_path / "out.parquet", tmp_path / "out.parquet.results.jsonl"
    folder.run(output=output)
    table = pq.read_table(output)
    assert folder.run(output=output).done == 0 and len(engines) == 1
    output.unlink()
    assert folder.run(output=output).done == 0, "made again from the results"
    assert pq.read_table(output) == table
    results.write_bytes(results.read_bytes()[:-300])
    assert folder.run(output=output).done > 0
    assert pq.read_table(output) == table


def test_a_file_that_is_not_parquet(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "in.parquet").write_text("no")
    with pytest.raises(JobError, match="no sound Parquet file"):
        folder.run(input=tmp_path / "in.parquet")


def test_without_pyarrow(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    folder.write(requests(1))
    (tmp_path / "in.parquet").write_text("")
    for paths in ({"input": tmp_path / "in.parquet"}, {"output": tmp_path / "out.parquet"}):
        with pytest.raises(JobError, match=r"needs pyarrow: pip install 'moelens\[parquet\]'"):
            folder.run(**paths)
    assert folder.run().finished, "JSON lines need none"


def test_nulls_are_left_out_at_every_depth() -> None:
    assert without_nulls({"a": None, "b": [{"c": None, "d": 1}], "e": [None]}) == {"b": [{"d": 1}], "e": [None]}
