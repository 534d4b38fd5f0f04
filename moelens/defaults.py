"""The sampling parameters that a model's authors recommend."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moelens.checkpoint.source import read_generation_config
from moelens.errors import ConfigError, ValidationError
from moelens.sampling_params import SamplingParams

# generation_config.json's names for what SamplingParams has; vLLM takes these and no others
_FIELDS = {
    "repetition_penalty": "repetition_penalty",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "max_new_tokens": "max_tokens",
}


def recommended_fields(
    folder: Path, generation_config: str | os.PathLike[str], override: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Fields of SamplingParams from generation_config.json, of `folder` or of another ("auto"), or none ("vllm").

    `override` replaces entries of that file. Raises ConfigError for entries that can't be used.
    """
    for name in override or ():
        if name not in _FIELDS:
            raise ConfigError(
                f"override_generation_config has {name!r}, which moelens does not use; it uses {', '.join(_FIELDS)}."
            )
    found = _read(folder, generation_config) | dict(override or {})
    fields = {ours: found[theirs] for theirs, ours in _FIELDS.items() if found.get(theirs) is not None}
    try:
        SamplingParams(**fields)
    except ValidationError as error:
        raise ConfigError(
            f"The model's generation_config.json can't be used as default sampling parameters: {error} "
            "Leave it out with generation_config='vllm', or change it with override_generation_config."
        ) from error
    return fields


def _read(folder: Path, generation_config: str | os.PathLike[str]) -> dict[str, Any]:
    if generation_config == "vllm":
        return {}
    if generation_config == "auto":
        return read_generation_config(folder)
    other = Path(generation_config)
    if not (other / "generation_config.json").is_file():
        raise ConfigError(
            f"generation_config={str(generation_config)!r} is no folder that holds a generation_config.json. "
            "Use such a folder, 'auto' for the model's own, or 'vllm' for none."
        )
    return read_generation_config(other)
