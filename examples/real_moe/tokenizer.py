"""Rebuilds the tokenizer's files and the chat template from a GGUF file's metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from real_moe.files import write_json

SPECIAL = 3  # GGUF's token type for control tokens


def write_tokenizer(metadata: dict[str, Any], max_context: int, folder: Path) -> None:
    """Write tokenizer.json, its config, the chat template and generation_config.json."""
    added = _added_tokens(metadata)
    names = {
        "bos_token": _token(metadata, "bos_token_id"),
        "eos_token": _token(metadata, "eos_token_id"),
        "pad_token": _token(metadata, "padding_token_id"),
        "unk_token": _token(metadata, "unknown_token_id"),
    }
    template = metadata["tokenizer.chat_template"]
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(token["id"]): _decoder_entry(token) for token in added},
        "additional_special_tokens": [names["bos_token"], names["eos_token"]],
        **names,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_context,
        "tokenizer_class": "GPT2Tokenizer",
        "chat_template": template,
    }
    write_json(_tokenizer(metadata, added), folder / "tokenizer.json", indent=None)
    write_json(config, folder / "tokenizer_config.json")
    (folder / "chat_template.jinja").write_bytes(template.encode())
    write_json(names, folder / "special_tokens_map.json")
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "do_sample": False}
    write_json(generation, folder / "generation_config.json")


def _token(metadata: dict[str, Any], key: str) -> str:
    token: str = metadata["tokenizer.ggml.tokens"][metadata[f"tokenizer.ggml.{key}"]]
    return token


def _added_tokens(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": i, "content": tokens[i], **flags} for i, kind in enumerate(types) if kind == SPECIAL]


def _decoder_entry(token: dict[str, Any]) -> dict[str, Any]:
    return {key: token[key] for key in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")}


def _tokenizer(metadata: dict[str, Any], added: list[dict[str, Any]]) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])},
            "merges": [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]],
        },
    }
