"""The lm-eval adapter on a task of our own: its scores are the model's log-probabilities."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_config import CONFIG

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = [
    {"question": "The sky is", "choices": ["blue", "green", "loud"], "answer": 0},
    {"question": "Two and two are", "choices": ["four", "five"], "answer": 0},
    {"question": "A cat says", "choices": ["moo", "meow"], "answer": 1},
]
CHOICES = """
task: tiny_choices
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{metric: acc}]
"""
GENERATE = """
task: tiny_generate
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["q"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
"""
PERPLEXITY = """
task: tiny_perplexity
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}]
"""


@pytest.mark.slow
def test_lm_eval_runs_a_local_task(byte_tokenizer_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install lm-eval)")
    model = tmp_path / "model"
    model.mkdir()
    for path in byte_tokenizer_folder.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    (model / "config.json").write_text(json.dumps(CONFIG))
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    for name, text in (("choices", CHOICES), ("generate", GENERATE), ("perplexity", PERPLEXITY)):
        (tmp_path / f"{name}.yaml").write_text(text.replace("DATA", str(data)))
    command = [sys.executable, str(ROOT / "examples/lm_eval_moelens.py"), "--model", "moelens", "--log_samples"]
    command += ["--model_args", f"pretrained={model},load_format=dummy,num_threads=1", "--include_path", str(tmp_path)]
    command += ["--tasks", "tiny_choices,tiny_generate,tiny_perplexity", "--output_path", str(tmp_path / "results")]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(f"|tiny_{name}" in done.stdout for name in ("choices", "generate", "perplexity")), done.stdout
    samples = {path.name.split("_")[2]: path for path in (tmp_path / "results").rglob("samples_tiny_*.jsonl")}
    assert scores(samples["choices"]) == pytest.approx(expected_scores(model), rel=1e-5)
    texts = [sample["resps"][0][0] for sample in read(samples["generate"])]
    assert all("q" not in text for text in texts) and any(texts)
    assert all(float(sample["resps"][0][0]) < 0 for sample in read(samples["perplexity"]))


def read(path: Path) -> list[dict[str, Any]]:
    return sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda sample: sample["doc_id"])


def scores(path: Path) -> list[float]:
    return [float(answer[0][0]) for sample in read(path) for answer in sample["resps"]]


def expected_scores(model: Path) -> list[float]:
    """By another way: each token's log-probability as the first one generated."""
    from moelens import LLM, SamplingParams

    llm = LLM(model, load_format="dummy", num_threads=1, max_logprobs=300, use_tqdm_on_load=False)
    tokenizer = llm.get_tokenizer()
    found = []
    params = SamplingParams(max_tokens=1, logprobs=300, temperature=0)
    for question in QUESTIONS:
        for choice in question["choices"]:
            context = tokenizer(question["question"])["input_ids"]
            whole = tokenizer(f"{question['question']} {choice}")["input_ids"]
            prompts = [whole[:end] for end in range(len(context), len(whole))]
            outputs = llm.generate(prompts, params, use_tqdm=False)
            entries = [output.outputs[0].logprobs[0] for output in outputs]
            found.append(
                sum(entry[token_id].logprob for entry, token_id in zip(entries, whole[len(context) :], strict=True))
            )
    assert all(math.isfinite(score) for score in found)
    return found
