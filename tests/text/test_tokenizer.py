"""The tokenizer as moelens uses it: what is refused, and what a bad word comes to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from moelens.errors import CheckpointError, ConfigError, ValidationError
from moelens.text.chat import read_chat_template
from moelens.text.tokenizer import bad_word_sequences, load_tokenizer

if TYPE_CHECKING:
    from moelens.text.tokenizer import Tokenizer

PLAIN = {"add_special_tokens": False}


def test_text_goes_there_and_back(byte_tokenizer: Tokenizer) -> None:
    texts = ["the stop", "", "é 😀  .", "<|im_start|>x"]
    encoded = byte_tokenizer.encode(texts)
    assert all(token_ids[0] == 0 for token_ids in encoded)
    assert [byte_tokenizer.decode(ids[1:], skip_special_tokens=False) for ids in encoded] == texts
    assert [list(ids) for ids in byte_tokenizer.encode(texts, PLAIN)] == [list(ids[1:]) for ids in encoded]


def test_spaces_before_punctuation_are_not_cleaned_up(byte_tokenizer: Tokenizer) -> None:
    (token_ids,) = byte_tokenizer.encode(["a . b , c"], PLAIN)
    assert byte_tokenizer.decode(token_ids, skip_special_tokens=True) == "a . b , c"


def test_ids_without_a_token_have_no_text(byte_tokenizer: Tokenizer) -> None:
    """A model's vocabulary is often padded beyond the tokenizer's."""
    (token_ids,) = byte_tokenizer.encode(["ab"], PLAIN)
    assert byte_tokenizer.decode([token_ids[0], 290, token_ids[1]], skip_special_tokens=True) == "ab"


def test_code_of_a_checkpoint_is_not_run(byte_tokenizer_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "remote"
    shutil.copytree(byte_tokenizer_folder, folder)
    (folder / "own.py").write_text("raise SystemExit('the code ran')\n")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    try:
        load_tokenizer(folder)  # a version that finds tokenizer.json enough may load it
    except CheckpointError as error:
        assert "skip_tokenizer_init=True" in str(error)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"No tokenizer can be loaded from {tmp_path} .* tokenizer=…"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("mode", ["slow", "mistral"])
def test_an_unknown_mode_is_named(byte_tokenizer_folder: Path, mode: str) -> None:
    with pytest.raises(ConfigError, match=f"tokenizer_mode='{mode}' is not supported. Use 'auto' or 'hf'"):
        load_tokenizer(byte_tokenizer_folder, mode=mode)


def test_a_bad_word_is_forbidden_at_the_beginning_and_after_a_space(byte_tokenizer: Tokenizer) -> None:
    plain, spaced, stop = byte_tokenizer.encode(["the", " the", "stop"], PLAIN)
    assert len(plain) == len(spaced) == len(stop) == 1
    assert bad_word_sequences(byte_tokenizer, ["the"]) == (tuple(plain), tuple(spaced))
    assert bad_word_sequences(byte_tokenizer, [" the"]) == (tuple(plain), tuple(spaced))
    # " stop" has a token more, and its first is a space: only the plain form counts.
    assert bad_word_sequences(byte_tokenizer, ["stop"]) == (tuple(stop),)


def test_a_bad_word_must_have_tokens(byte_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValidationError, match="bad_words entries must tokenize to at least one token"):
        bad_word_sequences(byte_tokenizer, [" "])


def test_half_a_character_is_said(byte_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValidationError, match=r"holds \\ud83d at character 2, half of a surrogate pair"):
        byte_tokenizer.encode(["fine", "a \ud83d"])


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{{ messages.append(1) }}",
        "{% for i in range(1000000000) %}{% endfor %}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_stays_in_its_sandbox(byte_tokenizer: Tokenizer, template: str) -> None:
    with pytest.raises(ValidationError, match="The chat template refused the conversation"):
        byte_tokenizer.render([{"role": "user", "content": "a"}], chat_template=template)


def test_a_template_is_a_text_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text("{{ messages }}", encoding="utf-8")
    assert read_chat_template(None) is None
    assert read_chat_template(path) == read_chat_template(str(path)) == "{{ messages }}"
    assert read_chat_template("{{ x }}") == "{{ x }}"
    with pytest.raises(ConfigError, match="is neither a file nor a Jinja template"):
        read_chat_template(tmp_path / "other.jinja")
