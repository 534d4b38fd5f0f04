"""Sizes in bytes as people write them."""

from __future__ import annotations

import re

from moelens.errors import ConfigError

_UNITS = {"": 1, "k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20, "g": 10**9, "G": 2**30, "t": 10**12, "T": 2**40}


def parse_bytes(text: str) -> int:
    """A size in bytes: 4294967296, 4G or 4GiB (powers of 1024), 4g or 4GB (powers of 1000), 1.5GiB.

    Raises ConfigError.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmMgGtT]?)(iB|B)?", text.strip())
    if match is None or float(match[1]) == 0:
        raise ConfigError(f"{text!r} is not a size in bytes; write e.g. 4GiB, 4GB or 4294967296")
    unit = match[2]
    if match[3] == "B":
        unit = unit.lower()
    elif match[3] == "iB":
        unit = unit.upper()
    return int(float(match[1]) * _UNITS[unit])
