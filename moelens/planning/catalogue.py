"""Models and machines that have a name: data files in the package, each figure with its source."""

from __future__ import annotations

import difflib
import json
from importlib import resources
from pathlib import Path

from moelens.cost.hardware import HardwareSpec, from_json, read_hardware
from moelens.errors import ConfigError


def hardware_names() -> list[str]:
    """The machines that have a data file."""
    folder = resources.files("moelens.planning") / "hardware"
    return sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json"))


def named_hardware(name: str) -> HardwareSpec:
    """The machine of that name, or that of a file; raises ConfigError when there is neither."""
    if name in hardware_names():
        file = resources.files("moelens.planning") / "hardware" / f"{name}.json"
        return from_json(json.loads(file.read_text(encoding="utf-8")), name)
    if Path(name).is_file():
        return read_hardware(Path(name))
    raise ConfigError(
        f"hardware {name!r} is neither a file nor one of {', '.join(('this', *hardware_names()))}: use one of these."
    )


def model_names() -> list[str]:
    """The models whose config is in the package."""
    return sorted(_models())


def named_config(name: str) -> dict[str, object] | None:
    """config.json of a model by its name (without its owner, capitals ignored), None for an unknown one."""
    short = name.rpartition("/")[2].casefold()
    for known, config in _models().items():
        if short == known.casefold() or short.startswith(f"{known.casefold()}-"):
            return config
    return None


def nearest_model(name: str) -> str:
    """The known model whose name is most like this one."""
    known = model_names()
    return next(iter(difflib.get_close_matches(name.rpartition("/")[2], known, n=1, cutoff=0.0)), known[0])


def _models() -> dict[str, dict[str, object]]:
    file = resources.files("moelens.planning") / "models" / "models.json"
    models: dict[str, dict[str, object]] = json.loads(file.read_text(encoding="utf-8"))
    return models
