"""From a path or a hub id to a folder, without a network, and the config files in it."""

import fnmatch
import json

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from moelens.checkpoint.source import find_checkpoint, find_settings, read_config, read_generation_config
from moelens.errors import CheckpointError


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that records what it is asked for and gives a folder."""
    calls = []

    def snapshot_download(*args, **options):
        calls.append((args, options))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_a_folder_is_used_as_it_is(tmp_path, hub, monkeypatch):
    assert find_checkpoint(str(tmp_path)) == tmp_path
    assert find_checkpoint(tmp_path) == tmp_path
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("owner/name").resolve() == tmp_path / "owner" / "name"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_checkpoint("~/owner") == tmp_path / "owner"
    assert hub == []


def test_a_link_to_a_folder(tmp_path, hub):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert find_checkpoint(tmp_path / "link").resolve() == tmp_path / "real"


@pytest.mark.parametrize("model", ["owner/name", "name", "Qwen/Qwen1.5-MoE-A2.7B"])
def test_a_hub_id_is_downloaded(hub, tmp_path, model):
    found = find_checkpoint(model, revision="v1", token="t", download_dir="cache")
    assert found == tmp_path / "snapshot"
    (args, options) = hub[0]
    assert args == (model,) and options["revision"] == "v1" and options["token"] == "t"
    assert options["cache_dir"] == "cache"


def wanted_files(options, files):
    def matches(name, patterns):
        return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)

    return {f for f in files if matches(f, options["allow_patterns"]) and not matches(f, options["ignore_patterns"])}


SETTINGS = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "chat_template.jinja",
    "merges.txt",
    "model.safetensors.index.json",
}
WEIGHTS = {"model-00001-of-00002.safetensors", "model.safetensors"}
OTHERS = {
    "pytorch_model.bin",
    "model.gguf",
    "modeling_mixtral.py",
    "consolidated.00.pth",
    "consolidated.safetensors",
    "original/params.json",
    "onnx/model.safetensors",
    "README.md",
}


def test_only_what_is_used_is_downloaded(hub):
    find_checkpoint("owner/name")
    find_settings("owner/name")
    checkpoint, settings = (options for _, options in hub)
    assert wanted_files(checkpoint, SETTINGS | WEIGHTS | OTHERS) == SETTINGS | WEIGHTS
    assert wanted_files(settings, SETTINGS | WEIGHTS | OTHERS) == SETTINGS


@pytest.mark.parametrize(
    "model", ["/no/such/folder", "./name", "../name", "~/nothing", "a/b/c", "name/", "", "a b", "x\0"]
)
def test_a_path_that_does_not_exist_is_not_looked_up(hub, model):
    with pytest.raises(CheckpointError, match=r"is no folder here, and it can't be a hub id.*check the path"):
        find_checkpoint(model)
    assert hub == []


def test_a_file_is_refused(hub, tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(CheckpointError, match="is a file: give the folder"):
        find_checkpoint(str(file))
    assert hub == []


@pytest.mark.parametrize(
    "error",
    [
        OfflineModeIsEnabled("offline mode is enabled"),
        LocalEntryNotFoundError("can't be reached"),
        ConnectionError("no route\nto host"),
        RuntimeError("anything else"),
    ],
)
def test_a_failed_download_says_what_to_do(monkeypatch, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    message = rf"model='owner/name' is no folder here, and .*{type(error).__name__}.*revision \(main\).*give the folder"
    with pytest.raises(CheckpointError, match=message) as caught:
        find_checkpoint("owner/name")
    assert caught.value.__cause__ is error


def test_config_with_overrides(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral", "rope": {"theta": 1}, "k": 2}))
    assert read_config(tmp_path) == {"model_type": "mixtral", "rope": {"theta": 1}, "k": 2}
    overrides = {"k": 4, "rope": {"type": "default"}, "new": None}
    assert read_config(tmp_path, overrides) == {
        "model_type": "mixtral",
        "rope": {"type": "default"},
        "k": 4,
        "new": None,
    }


def test_generation_config_is_optional(tmp_path):
    assert read_generation_config(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6}')
    assert read_generation_config(tmp_path) == {"temperature": 0.6}


def test_missing_config(tmp_path):
    with pytest.raises(CheckpointError, match=r"config.json is missing: download the whole checkpoint, or name"):
        read_config(tmp_path)


@pytest.mark.parametrize("read", [read_config, read_generation_config])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[1]", "holds a JSON list, not an object"),
        (b"", "not JSON"),
    ],
)
def test_config_that_is_none(tmp_path, read, content, message):
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"config.json .*{message}"):
        read(tmp_path)


def test_config_that_can_not_be_read(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"config.json can't be read \(Is a directory\)"):
        read_config(tmp_path)
