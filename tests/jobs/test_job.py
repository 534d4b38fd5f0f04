"""Jobs: results, faults, going on, and what stops them."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from job_folder import Folder, requests

from moelens import _cpu
from moelens.errors import ConfigError, JobError
from moelens.jobs.job import check_input
from moelens.jobs.journal import Journal, differences
from moelens.jobs.results import Numbers, ResultFile
from moelens.request import Request


@pytest.fixture
def whole(folder: Folder) -> dict[int, dict[str, Any]]:
    """The results of `requests(30)`, run in one go; the output is gone again."""
    folder.write(requests(30))
    folder.run()
    results = folder.results()
    folder.output.unlink()
    folder.output.with_name("out.jsonl.journal").unlink()
    return results


def stop_at_step(engine: FakeEngine, step: int, number: signal.Signals = signal.SIGINT) -> None:
    """Have the process get a signal within a step."""
    pick = engine._next_token

    def next_token(request: Request) -> int:
        if engine.totals.steps == step:
            engine.totals.steps += 1000
            signal.raise_signal(number)
        return pick(request)

    engine._next_token = next_token


# --- results ----------------------------------------------------------------------------------------------------------


def test_every_line_has_one_result_of_its_own_form(folder: Folder) -> None:
    folder.write(requests(9))
    report = folder.run()
    assert (report.lines, report.done_before, report.done, report.failed, report.finished) == (9, 0, 9, 0, True)
    results = folder.results()
    assert sorted(results) == list(range(1, 10))
    chat, completion, plain = results[1], results[2], results[3]
    assert chat["custom_id"] == "a0" and chat["error"] is None
    assert chat["response"]["status_code"] == 200 and chat["response"]["request_id"] == "moelens-batch-1"
    body = chat["response"]["body"]
    assert body["object"] == "chat.completion" and body["model"] == "model"
    assert body["choices"][0]["message"]["role"] == "assistant"
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 1
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 1
    body = completion["response"]["body"]
    assert body["object"] == "text_completion" and isinstance(body["choices"][0]["text"], str)
    assert body["usage"]["prompt_tokens"] == len("<hi 1"), "a <s> and the bytes"
    assert plain["custom_id"] == "3" and len(plain["outputs"]) == 2
    assert plain["outputs"][0]["text"] != plain["outputs"][1]["text"]


def test_a_chat_has_one_bos(folder: Folder) -> None:
    folder.write([{"messages": [{"role": "user", "content": "hi"}], "return_token_ids": True, "max_tokens": 1}])
    folder.run()
    assert folder.results()[1]["prompt_token_ids"].count(0) == 1


def test_log_probabilities(folder: Folder) -> None:
    more: dict[str, Any] = {"max_tokens": 2, "ignore_eos": True}
    chat = {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 1, **more}
    lines = [
        {"custom_id": "a", "url": "/v1/chat/completions", "body": chat},
        {"custom_id": "b", "url": "/v1/completions", "body": {"prompt": "a", "logprobs": 1, **more}},
        {"custom_id": "c", "prompt": "ab", "logprobs": 1, "prompt_logprobs": 1, **more},
    ]
    folder.write(lines)
    folder.run()
    results = folder.results()
    content = results[1]["response"]["body"]["choices"][0]["logprobs"]["content"]
    assert [set(entry) for entry in content] == [{"token", "logprob", "bytes", "top_logprobs"}] * 2
    assert content[0]["logprob"] == -0.5 and content[0]["top_logprobs"][0]["token"] == content[0]["token"]
    logprobs = results[2]["response"]["body"]["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"] == [-0.5, -0.5] and len(logprobs["tokens"]) == len(logprobs["top_logprobs"]) == 2
    assert results[3]["outputs"][0]["cumulative_logprob"] == -1.0
    assert results[3]["prompt_logprobs"][0] is None and len(results[3]["prompt_logprobs"]) == 3


def test_faulty_lines_have_errors_and_the_others_results(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    lines: list[object] = [
        *requests(2),
        "not json",
        "",
        {"prompt": "a", "temperature": -1},
        b'{"prompt": "\xff"}',
        {"prompt": ""},
        {"prompt_token_ids": []},
        {"prompt": "x" * 64},
        {"prompt_token_ids": [5, 300]},
        {"custom_id": "a0", "prompt": "again"},
        {"messages": [{"role": "king", "content": "a"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [5]},
        {"messages": []},
        {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"tokenize": True}},
        {"prompt": "\ud800"},
        {"prompt": "a", "logprobs": 21},
        {"prompt": "a", "stop_token_ids": [300]},
        {"prompt": "a" * (10 << 20)},
        {"prompt": "last", "max_tokens": 1},
        {"prompt": "a", "structured_outputs": {"regex": "a(b"}},
        {"prompt": "a", "structured_outputs": {"json": {"type": "string", "format": "palindrome"}}},
    ]
    folder.write(lines)
    with caplog.at_level(logging.WARNING):
        report = folder.run()
    results = folder.results()
    failed = {number: result["error"] for number, result in results.items() if result["error"] is not None}
    assert set(results) == set(range(1, 25)) - {4}, "empty lines have no result"
    fine = {1, 2, 7, 22}  # of a prompt without text there is still the <s>
    assert set(failed) == set(results) - fine
    assert report.failed == len(failed) and report.finished
    assert {error["code"] for error in failed.values()} == {400}
    assert all(results[number]["response"]["body"] is None for number in failed)
    expected = {
        3: "Line 3 is not valid JSON",
        8: "The decoder prompt cannot be empty.",
        9: "longer than the maximum model length of 64",
        10: "Token id 300 is out of vocabulary",
        11: "custom_id 'a0' is given twice: line 1 has it already.",
        12: "The chat template refused the conversation: unknown role",
        13: "a content part of type 'image_url' is not supported",
        17: "The chat template refused",
        19: "Requested sample logprobs of 21",
        21: "The decoder prompt (10485760 characters) is longer than",
        23: "structured_outputs can't be compiled: ",
        24: "structured_outputs can't be compiled: Unknown format: palindrome",
    }
    for number, message in expected.items():
        assert failed[number]["message"].startswith(message) or message in failed[number]["message"]
    assert "lines can't be run" in caplog.text and "line 5: temperature must be non-negative" in caplog.text


def test_a_line_whose_logits_are_not_finite_fails_alone(folder: Folder, engines: list[FakeEngine]) -> None:
    folder.write([{"prompt": "good", "max_tokens": 2}, {"prompt": "bad", "max_tokens": 2}])
    original = FakeEngine._advance

    def advance(self: FakeEngine, request: Request) -> bool:
        self._next_token = lambda r: -1 if r.prompt_token_ids[1] == ord("b") else 50
        return original(self, request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeEngine, "_advance", advance)
        report = folder.run()
    results = folder.results()
    failed = [result for result in results.values() if result["error"]]
    assert report.failed == len(failed)
    assert all(result["error"]["code"] == 500 and "not finite" in result["error"]["message"] for result in failed)


def test_a_text_that_utf8_cannot_hold_is_escaped(folder: Folder) -> None:
    folder.write([{"prompt": "a", "custom_id": "\ud800", "max_tokens": 1}, {"prompt": "a", "custom_id": "é"}])
    folder.run()
    assert {result["custom_id"] for result in folder.results().values()} == {"\ud800", "é"}
    assert "é".encode() in folder.output.read_bytes()


def test_mutated_lines_are_answered_one_by_one(folder: Folder) -> None:
    """A thousand lines with a byte changed, dropped or doubled: a result or an error for each."""
    random_ = random.Random(4)
    lines: list[bytes] = []
    for i in range(1000):
        line = bytearray(json.dumps(requests(30)[i % 30]).encode())
        for _ in range(random_.randint(1, 3)):
            at = random_.randrange(len(line))
            line[at : at + 1] = random_.choice([b"", bytes([random_.randrange(256)]), line[at : at + 1] * 2])
        lines.append(bytes(line).replace(b"\n", b" ").replace(b"\r", b" ") or b"{")
    folder.write(lines)
    report = folder.run()
    results = folder.results()
    assert len(results) == report.lines == report.done
    assert 100 < report.failed < 1000
    assert all(result["error"]["code"] == 400 for result in results.values() if result["error"]), "nothing unexpected"


def test_the_byte_order_mark_is_no_part_of_the_first_line(folder: Folder) -> None:
    folder.write([b"\xef\xbb\xbf" + json.dumps({"prompt": "a", "max_tokens": 1}).encode()])
    assert folder.run().failed == 0


def test_a_line_without_end_is_read_past(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moelens.jobs.sources.MAX_LINE_BYTES", 100)
    folder.write([b"x" * 5000, {"prompt": "a", "max_tokens": 1}])
    assert folder.run().failed == 1
    assert "Line 1 is longer than" in folder.results()[1]["error"]["message"]
    assert folder.results()[2]["error"] is None


def test_checking_needs_no_engine(folder: Folder, engines: list[FakeEngine]) -> None:
    folder.write([*requests(2), *["?"] * 15])
    found = check_input(folder.options())
    assert (found.lines, found.faulty, len(found.faults)) == (17, 15, 15)
    assert not engines and not folder.output.exists()


def test_an_input_without_lines(folder: Folder, engines: list[FakeEngine]) -> None:
    folder.write([])
    assert folder.run().finished
    assert folder.output.read_bytes() == b"" and not engines


# --- the model stays full, and the memory flat ------------------------------------------------------------------------


def test_requests_are_added_as_others_finish(folder: Folder, engines: list[FakeEngine]) -> None:
    folder.write([{"prompt": "a", "max_tokens": 1 + i % 13, "ignore_eos": True} for i in range(200)])
    running: list[tuple[int, int]] = []
    original = FakeEngine.run

    def run(self: FakeEngine) -> Any:
        for report in original(self):
            running.append((report.output_tokens, len(self.waiting)))
            yield report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeEngine, "run", run)
        folder.run()
    full = engines[0].plan.max_requests
    assert all(count == full for count, _ in running[:-30]), "the model was left idle"
    assert max(waiting for _, waiting in running) <= full, "more was read than the window holds"


def test_memory_does_not_grow_with_the_input(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    def add(self: FakeEngine, request: Request) -> None:
        self.waiting.append(request)  # and not to what it has seen

    monkeypatch.setattr(FakeEngine, "add", add)

    def peak_bytes(count: int) -> int:
        folder.write({"prompt": "x" * 40, "max_tokens": 1, "seed": 1} for _ in range(count))
        tracemalloc.start()
        folder.run(overwrite=True)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    folder.write(requests(5))
    folder.run()  # all that is imported and made once
    few, many = peak_bytes(200), peak_bytes(1200)
    assert many - few < 1000 * 50, "of a line no more stays than the hash of its id"


# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_job_goes_on_to_the_same_results(
    folder: Folder, whole: dict[int, dict[str, Any]], number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(number)
    done = runs = 0
    for _ in range(30):
        with monkeypatch.context() as patch:
            patch.setattr(
                FakeEngine, "__init__", _then(FakeEngine.__init__, lambda engine: stop_at_step(engine, 15, number))
            )
            report = folder.run()
        assert report.done_before == done
        done += report.done
        runs += 1
        assert len(folder.raw()) == done
        assert signal.getsignal(number) is before
        if report.finished:
            break
        assert report.stopped_by == number
    assert runs > 2 and folder.results() == whole


def _then(function: Any, more: Any) -> Any:
    def both(self: Any, *arguments: Any, **options: Any) -> None:
        function(self, *arguments, **options)
        more(self)

    return both


@pytest.mark.parametrize("torn", [1, 7, 200])
def test_a_torn_line_is_cut_off_and_run_again(folder: Folder, whole: dict[int, dict[str, Any]], torn: int) -> None:
    folder.run()
    content = folder.output.read_bytes()
    folder.output.write_bytes(content[:-torn])
    report = folder.run()
    assert report.done_before < 30 and report.finished
    assert folder.results() == whole


def test_damaged_and_repeated_lines_are_run_again(folder: Folder, whole: dict[int, dict[str, Any]]) -> None:
    folder.run()
    lines = list(folder.raw())
    lines[3] = b"\0" * (len(lines[3]) - 1) + b"\n"
    lines[5] = lines[5][:-9] + b"\n"
    lines[7:7] = [lines[8], b"something else\n"]
    folder.output.write_bytes(b"".join(lines))
    report = folder.run()
    assert report.done == 2
    assert folder.results() == whole


def test_a_finished_job_has_nothing_to_do(folder: Folder, engines: list[FakeEngine]) -> None:
    folder.write(requests(5))
    folder.run()
    content = folder.output.read_bytes()
    report = folder.run()
    assert (report.done_before, report.done, report.finished) == (5, 0, True)
    assert len(engines) == 1 and folder.output.read_bytes() == content


def test_errors_are_tried_again_on_request(folder: Folder, engines: list[FakeEngine]) -> None:
    folder.write([{"prompt": "a", "max_tokens": 2}, {"prompt": "x" * 64}, "?"])
    assert folder.run().failed == 2
    report = folder.run(retry_errors=True)
    assert (report.done_before, report.done, report.failed) == (1, 2, 2)
    assert len(folder.results()) == 3


def test_the_order_of_the_input_on_request(folder: Folder, whole: dict[int, dict[str, Any]]) -> None:
    folder.run(ordered=True)
    assert list(folder.results()) == sorted(whole)
    assert folder.results() == whole
    assert folder.run(ordered=True).finished


def test_an_unordered_output_can_be_ordered_later(folder: Folder, whole: dict[int, dict[str, Any]]) -> None:
    folder.run()
    assert list(folder.results()) != sorted(whole)
    folder.run(ordered=True)
    assert list(folder.results()) == sorted(whole)


def test_lines_may_be_added_to_the_input(folder: Folder) -> None:
    folder.write(requests(5))
    folder.run()
    first = folder.output.read_bytes()
    folder.write(requests(8))
    assert folder.run().done == 3
    assert folder.output.read_bytes().startswith(first)


# --- not the same job -------------------------------------------------------------------------------------------------


def test_another_input_is_refused(folder: Folder) -> None:
    folder.write(requests(5))
    folder.run()
    folder.write(requests(6)[1:])
    with pytest.raises(JobError, match=r"results of another input.*sha256"):
        folder.run(accept_changes=True)
    assert folder.run(overwrite=True).done == 5


def change_config(folder: Folder) -> dict[str, Any]:
    (folder.model / "config.json").write_text('{"x": 1}')
    return {}


def change_tokenizer(folder: Folder) -> dict[str, Any]:
    path = folder.model / "tokenizer_config.json"
    path.write_text(path.read_text() + " ")
    return {}


def change_weights(folder: Folder) -> dict[str, Any]:
    (folder.model / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    return {}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (change_config, "model.config.config.json: "),
        (change_tokenizer, "tokenizer.tokenizer_config.json: "),
        (change_weights, "model.weights.model.safetensors: nothing -> "),
        (lambda folder: {"seed": 1}, "seed: 0 -> 1"),
        (lambda folder: {"sampling_defaults": {"top_k": 3}}, "sampling_defaults.top_k: nothing -> 3"),
        (lambda folder: {"engine": {"dtype": "float32"}}, "model.dtype: auto -> float32"),
        (lambda folder: {"engine": {"quantization": "int8"}}, "model.quantization: null -> int8"),
        (lambda folder: {"engine": {"chat_template": "{{ 1 }}"}}, "chat_template: null -> "),
        (lambda folder: {"engine": {"max_model_len": 50}}, "max_model_len: 64 -> 50"),
        (lambda folder: {"served_model_name": ["other"]}, "model.name: model -> other"),
    ],
)
def test_another_model_or_setting_is_refused_unless_accepted(folder: Folder, change: Any, what: str) -> None:
    folder.write(requests(4))
    stopped = folder.options()
    folder.run()
    folder.output.write_bytes(folder.raw()[0])
    options = change(folder)
    with pytest.raises(JobError, match="begun with something else") as refused:
        folder.run(**options)
    assert what in str(refused.value) and "--accept-changes" in str(refused.value)
    assert folder.run(accept_changes=True, **options).done == 3
    assert folder.run(**options).done == 0, "accepted once and for all"
    assert stopped.seed == 0


def test_another_version_is_refused(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write(requests(2))
    folder.run()
    monkeypatch.setattr("moelens.jobs.model.versions", lambda: {"moelens": "9.9"})
    with pytest.raises(JobError, match=r"versions\.moelens: 0\.1\.0 -> 9\.9"):
        folder.run()


def test_the_length_limit_of_the_first_run_is_kept(folder: Folder, engines: list[FakeEngine]) -> None:
    folder.write(requests(4))
    folder.run(engine={"max_model_len": 50})
    folder.output.write_bytes(b"")
    folder.run()
    assert [engine.max_model_len for engine in engines] == [50, 50]


def test_a_second_process_is_refused(folder: Folder) -> None:
    folder.write(requests(1))
    with Journal(folder.output), pytest.raises(JobError, match="Another process writes"):
        folder.run()
    assert folder.run().finished


def test_a_file_that_no_job_has_written_is_kept(folder: Folder) -> None:
    folder.write(requests(1))
    folder.output.write_text("precious")
    with pytest.raises(JobError, match="no job has written it"):
        folder.run()
    assert folder.output.read_text() == "precious"
    assert folder.run(overwrite=True).finished


def test_paths_that_cannot_be(folder: Folder, tmp_path: Path) -> None:
    folder.write(requests(1))
    with pytest.raises(JobError, match="is the input"):
        folder.run(output=folder.input)
    with pytest.raises(JobError, match="is a folder"):
        folder.run(output=tmp_path)
    with pytest.raises(JobError, match="does not exist: make it first"):
        folder.run(output=tmp_path / "none" / "out.jsonl")
    with pytest.raises(JobError, match="No such file"):
        folder.run(input=tmp_path / "none.jsonl")
    with pytest.raises(JobError, match="is an address"):
        folder.run(input=Path("https://example.org/in.jsonl"))
    assert folder.input.read_bytes()


def test_another_instruction_set_is_refused(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write(requests(2))
    monkeypatch.setenv("MOELENS_CPU_ISA", _cpu.available_isas()[0])
    folder.run()
    if len(_cpu.available_isas()) == 1:
        pytest.skip("this machine has one instruction set")
    monkeypatch.setenv("MOELENS_CPU_ISA", "scalar")
    with pytest.raises(JobError, match=r"isa: \w+ -> scalar\n  \(MOELENS_CPU_ISA chooses"):
        folder.run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_inflight": 0}, "max_inflight must be at least 1"),
        ({"metrics_seconds": 0}, "metrics_seconds must be positive"),
        ({"sampling_defaults": {"tempurature": 1}}, "sampling_defaults can't be used: .*'temperature'"),
        ({"sampling_defaults": {"n": 0}}, "sampling_defaults can't be used: n must be"),
        ({"engine": {"skip_tokenizer_init": True}}, "results are texts"),
        ({"retry_errors": True, "overwrite": True}, "leave one out"),
    ],
)
def test_options_that_cannot_be(folder: Folder, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        folder.options(**options)


def test_an_input_that_changes_meanwhile_is_noticed(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write(requests(3))

    def change(engine: FakeEngine) -> None:
        pick = engine._next_token

        def next_token(request: Request) -> int:
            folder.write(requests(4))
            return pick(request)

        engine._next_token = next_token

    monkeypatch.setattr(FakeEngine, "__init__", _then(FakeEngine.__init__, change))
    with pytest.raises(JobError, match="was changed while the job ran"):
        folder.run()


# --- the disk ---------------------------------------------------------------------------------------------------------


def test_a_full_disk_loses_nothing(folder: Folder, whole: dict[int, dict[str, Any]]) -> None:
    """The kernel refuses to let files grow: part of a line is written, and taken back."""
    limit = 3000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(JobError, match=r"can't be written: File too large\. .*repeat the command"):
            folder.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 0 < len(folder.raw()) < 30
    assert folder.run().finished
    assert folder.results() == whole


def test_a_full_file_system_loses_nothing(folder: Folder, whole: dict[int, dict[str, Any]], tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(small)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        output = small / "out.jsonl"
        (small / "filling").write_bytes(b"x" * 4096)
        with pytest.raises(JobError, match=r"can't be written: No space left on device\. .*repeat the command"):
            folder.run(output=output)
        assert output.read_bytes().endswith(b"\n")
        (small / "filling").unlink()
        subprocess.run(["mount", "-o", "remount,size=1m", str(small)], check=True)
        assert folder.run(output=output).finished
        folder.output = output
        assert folder.results() == whole
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        with pytest.raises(JobError, match="can't be written: Read-only file system"):
            folder.run()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_part_of_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out"
    write = os.pwrite
    room = [8]

    def pwrite(file: int, data: bytes, offset: int) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = write(file, data[: room[0]], offset)
        room[0] -= taken
        return taken

    with ResultFile(path) as file:
        monkeypatch.setattr(os, "pwrite", pwrite)
        file.append([b"one\n"])
        with pytest.raises(JobError, match="No space left"):
            file.append([b"two\n", b"three\n"])
        assert path.read_bytes() == b"one\n"
        room[0] = 100
        file.append([b"two\n"])
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_full_disk_while_sorting_keeps_the_output(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write(requests(20))
    folder.run()
    content = folder.output.read_bytes()

    def fail(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(JobError, match="No space left"):
            folder.run(ordered=True)
    assert folder.output.read_bytes() == content
    assert sorted(path.name for path in folder.output.parent.iterdir()) == [
        "in.jsonl",
        "model",
        "out.jsonl",
        "out.jsonl.journal",
    ]


# --- parts ------------------------------------------------------------------------------------------------------------


def test_a_torn_event_of_the_journal_is_dropped(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Journal(output) as journal:
        journal.append("job", input=1)
        path = journal.path
    content = path.read_bytes()
    path.write_bytes(content + b'{"event": "fini')
    with Journal(output) as journal:
        assert journal.latest("job") == {"event": "job", "input": 1} and not journal.finished
        journal.append("finished")
    with Journal(output) as journal:
        assert journal.finished
    path.write_bytes(b"a diary\n")
    with pytest.raises(JobError, match="is no journal"):
        Journal(output)


def test_differences_are_named() -> None:
    before = {"a": {"b": 1, "c": [1]}, "d": None}
    assert list(differences(before, before)) == []
    assert list(differences(before, {"a": {"b": 2}, "d": "x" * 70})) == [
        "a.b: 1 -> 2",
        "a.c: [1] -> nothing",
        f"d: null -> {'x' * 57}…",
    ]


def test_a_set_of_numbers() -> None:
    numbers = Numbers()
    for number in (1, 8, 100_000, 8):
        numbers.add(number)
    assert len(numbers) == 3
    assert [number for number in (0, 1, 7, 8, 9, 99_999, 100_000, 10**9) if number in numbers] == [1, 8, 100_000]
