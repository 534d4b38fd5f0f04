"""From a folder's path or a hub id to a local folder that holds the checkpoint, and its config files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moelens.checkpoint.index import read_json
from moelens.errors import CheckpointError

_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w.-]+)?", re.ASCII)
_SETTINGS = ("*.json", "*.jinja", "tokenizer*", "*.model", "*.tiktoken", "*.txt")
_WEIGHTS = ("*.safetensors",)
# Subfolders hold other formats (original/, onnx/), consolidated files the same weights once more under other names.
_UNWANTED = ("*/*", "consolidated*.safetensors")


def find_checkpoint(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    download_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """The folder `model`, or where the hub's repository of that id was downloaded to (below `download_dir`, if given).

    Raises CheckpointError when it is neither, or the download fails and nothing of it is cached.
    """
    return _find(os.fspath(model), _SETTINGS + _WEIGHTS, revision, token, download_dir)


def find_settings(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    download_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """As `find_checkpoint`, but downloads no weights: config and tokenizer are enough for random ones."""
    return _find(os.fspath(model), _SETTINGS, revision, token, download_dir)


def read_config(folder: Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """config.json of `folder`, with `overrides` in place of the entries of the same names."""
    return read_json(folder / "config.json") | dict(overrides or {})


def read_generation_config(folder: Path) -> dict[str, Any]:
    """generation_config.json of `folder`; empty where there is none, as it is optional."""
    path = folder / "generation_config.json"
    return read_json(path) if path.exists() else {}


def _find(
    name: str,
    wanted: tuple[str, ...],
    revision: str | None,
    token: str | bool | None,
    download_dir: str | os.PathLike[str] | None,
) -> Path:
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return Path(path)
    if os.path.exists(path):
        raise CheckpointError(f"model={name!r} is a file: give the folder that holds config.json and *.safetensors.")
    if not _HUB_ID.fullmatch(name) or ".." in name:
        raise CheckpointError(
            f"model={name!r} is no folder here, and it can't be a hub id, which reads 'owner/name': check the path."
        )
    return _download(name, wanted, revision, token, download_dir)


def _download(
    name: str,
    wanted: tuple[str, ...],
    revision: str | None,
    token: str | bool | None,
    download_dir: str | os.PathLike[str] | None,
) -> Path:
    import huggingface_hub  # a slow import that a local folder does not need

    try:
        folder = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            token=token,
            cache_dir=download_dir,
            allow_patterns=list(wanted),
            ignore_patterns=list(_UNWANTED),
        )
    except Exception as error:  # the hub's errors, its HTTP client's and its storage client's share no root
        raise CheckpointError(
            f"model={name!r} is no folder here, and downloading it from the hub failed "
            f"({type(error).__name__}: {_first_line(error)}): check the spelling, the revision ({revision or 'main'}), "
            "the network and, for a gated model, the token; or download it elsewhere and give the folder's path."
        ) from error
    return Path(folder)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")
