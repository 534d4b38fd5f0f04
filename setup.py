"""Builds the extension modules of csrc/ with one ninja graph.

MOELENS_SANITIZE=1  instrument with AddressSanitizer and UndefinedBehaviorSanitizer, for a run of the kernels' tests
CXX, CXXFLAGS, MAX_JOBS  as usual
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SANITIZE = os.environ.get("MOELENS_SANITIZE") == "1"

# Without -ffp-contract=off a compiler may fuse a product and a sum in one instance of a template and not in another,
# and a row's bits would depend on the rows beside it. Flags of instruction sets are in the sources' target regions.
COMMON = "-std=c++17 -fPIC -fvisibility=hidden -ffp-contract=off -Wall -Wextra -Werror=return-type"
OPTIMISED = "-O3 -g0"
INSTRUMENTED = "-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined"


def extensions() -> list[Extension]:
    """Every module that this machine can build; each is named by its folder in csrc/."""
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / "cpu").rglob("*.cpp"))
    return [Extension("moelens._cpu", sources=sources)]


def ninja_path(path: Path | str) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


class NinjaBuild(build_ext):
    """Compiles all sources in one ninja run, in a folder that stays, so that a rebuild compiles what changed."""

    def build_extensions(self) -> None:
        folder = ROOT / "build" / self.folder_name()
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:  # two builds at a time would spoil each other's log
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.build_all(folder)

    def build_all(self, folder: Path) -> None:
        import ninja

        lines = [
            "rule compile\n  command = $cxx -MMD -MF $out.d $flags -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
            "rule link\n  command = $cxx -shared $flags -o $out $in -pthread",
            f"cxx = {os.environ.get('CXX', 'g++')}",
            f"flags = {self.flags()}",
        ]
        outputs = [self.graph(extension, folder, lines) for extension in self.extensions]
        (folder / "build.ninja").write_text("\n".join([*lines, f"default {' '.join(outputs)}", ""]))
        jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        subprocess.check_call([str(Path(ninja.BIN_DIR) / "ninja"), "-C", str(folder), *jobs])

    def graph(self, extension: Extension, folder: Path, lines: list[str]) -> str:
        """Add the build of one module to `lines`; returns its output."""
        objects = []
        for source in extension.sources:
            target = ninja_path(folder / f"{source}.o")
            lines.append(f"build {target}: compile {ninja_path(ROOT / source)}")
            objects.append(target)
        output = Path(self.get_ext_fullpath(extension.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        lines.append(f"build {ninja_path(output)}: link {' '.join(objects)}")
        return ninja_path(output)

    def folder_name(self) -> str:
        name = f"ninja-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        return f"{name}-sanitize" if SANITIZE else name

    def flags(self) -> str:
        import pybind11

        includes = [f"-I{ROOT / 'csrc' / 'cpu'}"]
        includes += [f"-isystem {path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]
        level = INSTRUMENTED if SANITIZE else OPTIMISED
        return " ".join([level, COMMON, *includes, os.environ.get("CXXFLAGS", "")]).strip()


setup(ext_modules=extensions(), cmdclass={"build_ext": NinjaBuild})
