"""`plan` says bound, prediction, limit, memory and lifts, for a config alone and a machine that is not here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moelens.cli.main import main
from moelens.planning.catalogue import hardware_names, model_names

JOB = ["--requests", "60", "--prompt-tokens", "98", "--output-tokens", "8", "--kv-memory", "70GB"]


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["plan", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, *arguments: str) -> str:
    assert main(["plan", *arguments]) == 1
    return caplog.text


def test_a_table_for_the_papers_machine(capsys: pytest.CaptureFixture[str]) -> None:
    text = plan(capsys, "--model", "mistralai/Mixtral-8x7B-Instruct-v0.1", "--hardware", "a40-paper", *JOB)
    for line in ("job", "bound", "prediction", "time", "limit", "busy", "memory", "plan", "lift"):
        assert any(one.startswith(line) for one in text.splitlines()), line
    assert "93.41 GB weights" in text
    assert "is 18236" in text  # the paper's n_real


def test_json_has_units_in_its_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    shown = plan(
        capsys, "--model", "DBRX", "--hardware", "h100", *JOB, "--json", "--prompt-max", "450", "--plot", str(picture)
    )
    report = json.loads(shown)
    assert report["prediction"]["tokens_per_second"] <= report["bound"]["tokens_per_second"]
    assert report["memory_bytes"]["weights"] == pytest.approx(264e9, rel=0.01)  # the paper: 264 GB
    assert report["prediction"]["moments"][-1]["end_seconds"] == pytest.approx(report["prediction"]["seconds"])
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("model", model_names())
def test_every_known_model_can_be_planned(capsys: pytest.CaptureFixture[str], model: str) -> None:
    shown = plan(capsys, "--model", model, "--hardware", "h100", *JOB, "--host-memory", "2TB", "--json")
    assert json.loads(shown)["prediction"]["seconds"] > 0


def test_a_datasets_lengths_are_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    dataset = tmp_path / "lengths.jsonl"
    dataset.write_text('{"prompt_tokens": 100, "output_tokens": 20}\n{"prompt_tokens": 50, "output_tokens": 10}\n')
    shown = plan(capsys, "--model", "OLMoE-1B-7B", "--hardware", "l4", "--dataset", str(dataset), "--json")
    report = json.loads(shown)
    assert (report["requests"], report["mean_prompt_tokens"], report["mean_output_tokens"]) == (2, 75, 15)


def test_what_is_wrong_is_said(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    model = ["--model", "OLMoE-1B-7B"]
    assert "nearest is 'Mixtral-8x7B'" in refused(capsys, caplog, "--model", "Mixtrl-8x7", "--hardware", "l4", *JOB)
    assert ", ".join(hardware_names()) in refused(capsys, caplog, *model, "--hardware", "v100", *JOB)
    assert "needs --requests" in refused(capsys, caplog, *model, "--hardware", "l4", "--requests", "3")
    dataset = tmp_path / "lengths.jsonl"
    dataset.write_text('{"prompt_tokens": 0, "output_tokens": 20}\n')
    assert "line 1" in refused(capsys, caplog, *model, "--hardware", "l4", "--dataset", str(dataset))
    assert "leave it" in refused(capsys, caplog, *model, "--hardware", "l4", "--dataset", str(dataset), *JOB[:2])


def test_a_file_of_another_machine_is_not_taken_for_this_one(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    machine = tmp_path / "copied.json"  # as measuring writes it, with the name that the machine had there
    host = {"name": "cpu", "flops_per_second": 5e11, "bytes_per_second": 5e10, "memory_bytes": 1e9}
    machine.write_text(json.dumps({"name": "this", "host": host}))
    arguments = ["--model", "OLMoE-1B-7B", "--hardware", str(machine), *JOB[:-2]]
    assert "0.90 GB of memory can't hold the weights" in refused(capsys, caplog, *arguments)


def test_quantised_weights_are_planned_for_machines_whose_cpu_multiplies(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    machine = tmp_path / "cpu.json"
    host = {"name": "cpu", "flops_per_second": 5e11, "bytes_per_second": 5e10, "memory_bytes": 1e11}
    machine.write_text(json.dumps({"name": "a CPU", "host": host}))
    arguments = ["--model", "OLMoE-1B-7B", "--quantization", "int8", *JOB[:-2]]
    report = json.loads(plan(capsys, *arguments, "--hardware", str(machine), "--json"))
    products = 16 * (4 * 2048 * 2048 + 3 * 64 * 1024 * 2048)  # a byte each; routers, embedding and head take two
    others = 2 * (16 * 64 * 2048 + 2 * 50304 * 2048)
    assert report["memory_bytes"]["weights"] == pytest.approx(products + others, rel=0.005)  # beside scales
    assert "int8 kernels for CPUs only" in refused(capsys, caplog, *arguments, "--hardware", "l4")


def test_what_is_fixed_of_a_plan_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--block-size", "64", "--parts", "2", "--ring-layers", "3", "--load-chunks", "9"]
    flags += ["--resident-layers", "1", "--experts-on-host", "--max-num-seqs", "50", "--json"]
    chosen = json.loads(plan(capsys, "--model", "Mixtral-8x7B", "--hardware", "a40", *JOB, *flags))["plan"]
    names = ("block_tokens", "parts", "ring_layers", "load_chunks", "resident_layers", "experts_on_host")
    assert tuple(chosen[name] for name in names) == (64, 2, 3, 9, 1, True)
    assert (chosen["max_requests"], chosen["choose_parts"]) == (50, False)


def test_what_can_not_be_fixed_is_said(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    machine = tmp_path / "cpu.json"
    host = {"name": "cpu", "flops_per_second": 5e11, "bytes_per_second": 5e10, "memory_bytes": 1e11}
    machine.write_text(json.dumps({"name": "a CPU", "host": host}))
    arguments = ["--model", "OLMoE-1B-7B", *JOB]
    text = refused(capsys, caplog, *arguments, "--hardware", str(machine), "--parts", "2")
    assert "parts can't be given for a CPU: weights stream to a device only, and it has none" in text
    text = refused(capsys, caplog, *arguments, "--hardware", "l4", "--block-size", "48")
    assert "block_size (Plan.block_tokens) must be a multiple of 32, got 48" in text
    text = refused(capsys, caplog, *arguments, "--hardware", "l4", "--resident-layers", "17")
    assert "resident_layers is 17, but the model has 16 layers" in text
