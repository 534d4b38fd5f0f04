"""The model of a job before it is loaded: where its files are, its names, and what identifies it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moelens.checkpoint.identity import weight_files
from moelens.checkpoint.source import find_checkpoint, find_settings
from moelens.defaults import recommended_fields
from moelens.jobs.identity import CONFIG, TOKENIZER, small_files, versions
from moelens.jobs.options import JobOptions
from moelens.jobs.parse import LineParser
from moelens.text.chat import read_chat_template


@dataclass(frozen=True)
class JobModel:
    """`names` are what a body's `model` may say, the first one what is written where it says nothing."""

    folder: Path
    tokenizer_folder: Path
    names: tuple[str, ...]
    sampling_defaults: Mapping[str, Any]
    chat_template: str | None

    def parser(self, seed: int) -> LineParser:
        """What parses the lines that this model is to run."""
        return LineParser(seed, self.names, self.sampling_defaults, self.chat_template)


def find_model(options: JobOptions) -> JobModel:
    """Find (or download) the model's files, and read what lines depend on.

    Raises CheckpointError or ConfigError.
    """
    engine = options.engine
    places = {"token": engine.get("hf_token"), "download_dir": engine.get("download_dir")}
    find = find_settings if engine.get("load_format") == "dummy" else find_checkpoint
    folder = find(options.model, revision=engine.get("revision"), **places)
    tokenizer = engine.get("tokenizer")
    if tokenizer is not None:
        tokenizer = find_settings(tokenizer, revision=engine.get("tokenizer_revision"), **places)
    recommended = recommended_fields(
        folder, engine.get("generation_config", "auto"), engine.get("override_generation_config")
    )
    given = str(options.model)
    local = Path(given).expanduser()
    name = local.resolve().name if local.is_dir() else given
    return JobModel(
        folder,
        tokenizer or folder,
        tuple(options.served_model_name) or tuple(dict.fromkeys((name, given))),
        {**recommended, **options.sampling_defaults},
        read_chat_template(engine.get("chat_template")),
    )


def job_record(options: JobOptions, model: JobModel) -> dict[str, Any]:
    """All that the results depend on beside the input; another record, another text."""
    from moelens.ops.native import choose_isa  # the kernels, which nothing else needs before the model is loaded

    engine = options.engine
    dummy = engine.get("load_format") == "dummy"
    template = model.chat_template
    return {
        "versions": versions(),
        "isa": choose_isa(None),
        "model": {
            "name": model.names[0],
            "config": small_files(model.folder, CONFIG),
            "weights": {"random": options.seed} if dummy else weight_files(model.folder),
            "dtype": str(engine.get("dtype", "auto")),
            "quantization": engine.get("quantization"),
            "hf_overrides": dict(engine.get("hf_overrides") or {}),
        },
        "tokenizer": small_files(model.tokenizer_folder, TOKENIZER),
        "chat_template": None if template is None else hashlib.sha256(template.encode()).hexdigest(),
        "sampling_defaults": dict(model.sampling_defaults),
        "seed": options.seed,
    }
