"""Which command runs, and what is said of commands and flags that do not exist."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys

import pytest

from moelens import LLM
from moelens.cli import flags
from moelens.cli.main import main
from moelens.cli.run_batch import make_parser

NEEDED = ["-i", "in.jsonl", "-o", "out.jsonl", "--model", "m"]


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert re.findall(r"^  ([\w-]+)  ", capsys.readouterr().out, re.MULTILINE) == [
        "run-batch",
        "doctor",
        "plan",
        "bench",
    ]


def test_no_command_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().err


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run_bach"]) == 2
    assert "the nearest is 'run-batch'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--max-model-length", "nearest supported flag is --max-model-len "),
        ("--max-num-seq", "nearest supported flag is --max-num-seqs "),
        ("--cpu-offload-gb", "is not supported: what lies where is planned"),
        ("--enable-metrics", "is not supported: use --metrics-file"),
        ("--tensor-parallel-size", "is not supported: one process"),
    ],
)
def test_an_unknown_flag_names_the_nearest_or_the_reason(
    flag: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for given in ([flag, "3"], [f"{flag}=3"]):
        with pytest.raises(SystemExit) as exit_:
            main(["run-batch", *NEEDED, *given])
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--max-num-seqs", "0"], "must be a whole number of at least 1, got '0'"),
        (["--kv-cache-memory-bytes", "much"], "'much' is not a size in bytes"),
        (["--hf-overrides", "[1]"], "must be a JSON object, got '[1]'"),
        (["--sampling-defaults", "{"], "must be a JSON object, got '{'"),
        (["extra"], "'extra' is too much"),
    ],
)
def test_a_wrong_value_is_said(given: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run-batch", *NEEDED, *given])
    assert message in capsys.readouterr().err


def test_every_model_flag_is_an_argument_of_llm() -> None:
    parameters = inspect.signature(LLM.__init__).parameters
    assert set(flags.ENGINE_ARGUMENTS) <= set(parameters)
    found = make_parser().parse_args([*NEEDED, "--max-model-len", "64", "--kv-cache-memory-bytes", "1MiB"])
    assert set(flags.ENGINE_ARGUMENTS) <= set(vars(found)), "each has a flag"
    assert flags.engine_arguments(found) == {"max_model_len": 64, "kv_cache_memory_bytes": 1 << 20}


def test_the_doctor_runs_as_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "moelens", "doctor", "--json"], capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert set(report["sections"]) == {"processor", "memory", "GPU", "software", "storage"}
    assert done.returncode == (1 if report["problems"] else 0)
