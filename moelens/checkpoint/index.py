"""Which file of a checkpoint's folder holds which tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from moelens.checkpoint.faults import damaged, damaged_tensor, quote
from moelens.checkpoint.safetensors import StoredTensor, read_header
from moelens.errors import CheckpointError, UnsupportedModelError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MISMATCH = "index and files are of different versions, so download all of them again"
_UNREADABLE = (("*.gguf", "GGUF"), ("pytorch_model*.bin*", "pickle"), ("*.pt", "pickle"), ("*.pth", "pickle"))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file `path`. Raises CheckpointError when it is missing or something else."""
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise damaged(path, "is missing", "download the whole checkpoint, or name the folder that holds it") from None
    except OSError as error:
        raise damaged(path, f"can't be read ({error.strerror})", "check the disk and the file's permissions") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"is not JSON ({quote(str(error))})") from None
    if not isinstance(value, dict):
        raise damaged(path, f"holds a JSON {type(value).__name__}, not an object")
    return value


def find_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint in `folder`, by name, from its index or its only .safetensors file.

    Raises CheckpointError when files are missing or contradict each other, UnsupportedModelError when the weights are
    in another format.
    """
    index = folder / INDEX
    if not index.exists():
        return read_header(_only_file(folder))
    weight_map = _weight_map(index)
    if (folder / SINGLE).exists() and SINGLE not in weight_map.values():
        raise damaged(folder, f"holds both {SINGLE} and an {INDEX} of other files", "delete the one that is outdated")
    return _indexed_tensors(index, weight_map)


def _only_file(folder: Path) -> Path:
    """The one .safetensors file of a folder without an index."""
    if (folder / SINGLE).is_file():
        return folder / SINGLE
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        names = f"{found[0].name} … {found[-1].name}"
        raise damaged(folder / INDEX, f"is missing beside {len(found)} files of weights ({names})")
    for pattern, form in _UNREADABLE:
        others = sorted(folder.glob(pattern))
        if others:
            raise UnsupportedModelError(
                f"{folder} holds its weights as {form} ({others[0].name}), and moelens reads .safetensors only"
                + (", as unpickling a file can run any code" if form == "pickle" else "")
                + ": use the model's safetensors version, or convert it with transformers' save_pretrained."
            )
    raise CheckpointError(f"{folder} holds no .safetensors file: download the whole checkpoint, weights included.")


def _weight_map(index: Path) -> dict[str, str]:
    """{tensor: file name} of the index; every name is that of a .safetensors file inside the folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise damaged(index, "has no weight_map {tensor: file}")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or "\0" in file or "\\" in file:
            raise damaged_tensor(index, name, "the name of a .safetensors file", quote(str(file)))
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts:
            raise damaged_tensor(index, name, "a file inside the checkpoint's folder", quote(file))
    return weight_map


def _indexed_tensors(index: Path, weight_map: Mapping[str, str]) -> dict[str, StoredTensor]:
    """The tensors of all files that the index names; index and files must list the same."""
    tensors: dict[str, StoredTensor] = {}
    files = sorted(set(weight_map.values()))
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        raise damaged(
            index.parent / missing[0],
            f"is missing; {len(missing)} of the {len(files)} files that {index.name} names are",
            "download the checkpoint again, or the missing files",
        )
    for file in files:
        path = index.parent / file
        for name, tensor in read_header(path).items():
            if weight_map.get(name) != file:
                listed = f"{index.name} lists it in {quote(weight_map[name])}" if name in weight_map else "not listed"
                raise damaged_tensor(path, name, f"{index.name} to list it in this file", listed, _MISMATCH)
            tensors[name] = tensor
    for name, file in weight_map.items():
        if name not in tensors:
            raise damaged_tensor(
                index.parent / file, name, f"it here, as {index.name} lists it", "no such tensor", _MISMATCH
            )
    return tensors
