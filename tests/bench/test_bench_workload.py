"""The bench's requests: lengths, seeds, and what is said of a dataset that can't be read."""

import json
from pathlib import Path

import pytest

from moelens.bench.arguments import Options, parse_arguments
from moelens.bench.workload import make_requests
from moelens.errors import ConfigError


def options(*flags: str) -> Options:
    return parse_arguments(["--model", "m", *flags])


def test_random_prompts_have_the_lengths_asked_and_differ() -> None:
    requests = make_requests(options("--input-len", "16", "--output-len", "4", "--num-prompts", "50"), 1000, 100)
    assert all(len(request.prompt) == 16 and request.output_tokens == 4 for request in requests)
    assert len({tuple(request.prompt) for request in requests}) == 50
    assert all(0 <= token < 1000 for request in requests for token in request.prompt)


def test_the_seed_decides_the_prompts() -> None:
    flags = ("--input-len", "8", "--num-prompts", "5")
    first = make_requests(options(*flags, "--seed", "1"), 1000, 1000)
    assert first == make_requests(options(*flags, "--seed", "1"), 1000, 1000)
    assert first != make_requests(options(*flags, "--seed", "2"), 1000, 1000)


def test_lengths_vary_within_the_ratio() -> None:
    flags = ("--input-len", "10", "--output-len", "20", "--random-range-ratio", "0.5", "--num-prompts", "500")
    requests = make_requests(options(*flags), 1000, 100)
    assert {len(request.prompt) for request in requests} == set(range(5, 16))
    assert {request.output_tokens for request in requests} == set(range(10, 31))


def test_prompts_too_long_for_the_model_are_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="up to 101 tokens"):
        make_requests(options("--input-len", "100", "--output-len", "1"), 1000, 100)


def write(path: Path, *lines: object) -> str:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return str(path)


def test_a_dataset_is_read_in_order_and_repeated_to_the_number_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {"prompt": "a", "id": 1}, "", {"prompt": "b"}, {"prompt": "é"})
    prompts = [r.prompt for r in make_requests(options("--dataset-path", path, "--num-prompts", "5"), 10, 10)]
    assert prompts == ["a", "b", "é", "a", "b"]
    prompts = [r.prompt for r in make_requests(options("--dataset-path", path, "--num-prompts", "2"), 10, 10)]
    assert prompts == ["a", "b"]
    prompts = [r.prompt for r in make_requests(options("--dataset-path", path, "--no-oversample"), 10, 10)]
    assert prompts == ["a", "b", "é"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: not JSON"),
        ({"text": "x"}, r"line 2: expected an object \{\"prompt\""),
        ({"prompt": 3}, "line 2: expected"),
        ({"prompt": ""}, "line 2: expected"),
        ([1], "line 2: expected"),
    ],
)
def test_a_bad_line_is_told_by_its_number(tmp_path: Path, line: object, said: str) -> None:
    path = write(tmp_path / "d.jsonl", {"prompt": "a"}, line)
    with pytest.raises(ConfigError, match=said):
        make_requests(options("--dataset-path", path), 10, 10)


def test_a_missing_empty_or_binary_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        make_requests(options("--dataset-path", str(tmp_path / "none")), 10, 10)
    with pytest.raises(ConfigError, match="has no prompts"):
        make_requests(options("--dataset-path", write(tmp_path / "empty", "")), 10, 10)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="can't be read"):
        make_requests(options("--dataset-path", str(tmp_path / "binary")), 10, 10)
