"""Where the matrix products run: what the argument `device` says, as a record."""

from __future__ import annotations

import re
from dataclasses import dataclass

from moelens.errors import ConfigError
from moelens.sizes import parse_bytes


@dataclass(frozen=True)
class CpuDevice:
    """The host does all."""


@dataclass(frozen=True)
class EmulatedDevice:
    """Threads of the host with a memory and links of their own, to try on any machine what a GPU would do.

    It holds `memory_bytes` in all; each direction of the link moves `link_bytes_per_second`; its products run on
    `threads` threads.
    """

    memory_bytes: int
    link_bytes_per_second: float
    threads: int = 1


@dataclass(frozen=True)
class CudaDevice:
    """The GPU of this index."""

    index: int = 0


Device = CpuDevice | EmulatedDevice | CudaDevice

_FORMS = "'auto', 'cpu', 'cuda', 'cuda:1' or 'emulated:link=4GB/s,memory=600MB'"


def parse_device(text: str) -> Device:
    """A device from 'auto' (the CPU, in this version), 'cpu', 'cuda', 'cuda:N' or 'emulated:link=…/s,memory=…'.

    An emulated device may have ',threads=N' too. Raises ConfigError.
    """
    if not isinstance(text, str):
        raise ConfigError(f"device must be a str, got {text!r}. Use {_FORMS}.")
    if text in ("auto", "cpu"):
        return CpuDevice()
    if match := re.fullmatch(r"cuda(?::(\d+))?", text):
        return CudaDevice(int(match[1] or 0))
    kind, _, settings = text.partition(":")
    if kind != "emulated":
        raise ConfigError(f"device={text!r} is not supported. Use {_FORMS}.")
    return _emulated(text, settings)


def _emulated(text: str, settings: str) -> EmulatedDevice:
    given: dict[str, str] = {}
    for setting in filter(None, settings.split(",")):
        name, equals, value = setting.partition("=")
        if not equals or name not in ("link", "memory", "threads") or name in given:
            raise ConfigError(f"device={text!r}: {setting!r} should be link=…/s, memory=… or threads=…, each once.")
        given[name] = value
    if missing := [name for name in ("link", "memory") if name not in given]:
        raise ConfigError(f"device={text!r} lacks {' and '.join(missing)}. Write e.g. {_FORMS.rpartition(' or ')[2]}.")
    threads = given.get("threads", "1")
    if not threads.isdecimal() or int(threads) < 1:
        raise ConfigError(f"device={text!r}: threads must be a whole number of at least 1, got {threads!r}.")
    if not given["link"].endswith("/s"):
        raise ConfigError(f"device={text!r}: link must be bytes per second such as 4GB/s, got {given['link']!r}.")
    try:
        link, memory = parse_bytes(given["link"].removesuffix("/s")), parse_bytes(given["memory"])
    except ConfigError as error:
        raise ConfigError(f"device={text!r}: {error}.") from error
    return EmulatedDevice(memory, float(link), int(threads))
