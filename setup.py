"""Builds the extension modules of csrc/ with one ninja graph.

MOELENS_CUDA=auto|0|1    the kernels for GPUs: where a CUDA toolkit is found (the default), never, or fail without one
MOELENS_CUDA_ARCHS=…     their architectures, as "90" or "80 86"; "native": those of this machine's GPUs
MOELENS_CUDA_EMU=1       build nothing but the GPU's kernels under emulation on the CPU, for tests
MOELENS_ISAS=all|native  the kernels for every instruction set (the default), or for those of this processor alone
MOELENS_EMULATE_TILES=1  the kernels for AMX without AMX, for tests on processors that lack it
MOELENS_SANITIZE=1       instrument with AddressSanitizer and UndefinedBehaviorSanitizer, to run the kernels' tests
CXX, CXXFLAGS, CUDA_HOME, MAX_JOBS  as usual
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SANITIZE = os.environ.get("MOELENS_SANITIZE") == "1"
EMULATE = os.environ.get("MOELENS_CUDA_EMU") == "1"
EMULATE_TILES = os.environ.get("MOELENS_EMULATE_TILES") == "1"

# Without -ffp-contract=off a compiler may fuse a product and a sum in one instance of a template and not in another,
# and a row's bits would depend on the rows beside it. Flags of instruction sets are in the sources' target regions.
COMMON = "-std=c++17 -fPIC -fvisibility=hidden -ffp-contract=off -Wall -Wextra -Werror=return-type"
OPTIMISED = "-O3 -g0"
# As little optimisation and debug information as tells the line of an error: compiling is what takes the time here.
INSTRUMENTED = "-Og -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined"

# What tells that the processor has what the kernels of csrc/cpu/variants/ need, among the macros of -march=native.
ISA_MACROS = {
    "AVX2": "__AVX2__",
    "AVX512": "__AVX512DQ__",
    "AVX512_BF16": "__AVX512BF16__",
    "AMX_BF16": "__AMX_BF16__",
}

# Compute capabilities that get machine code; anything newer is compiled from the PTX of the first when it is loaded.
CUDA_ARCHS = ("80", "86", "89", "90", "100", "120")
# --fmad=false is -ffp-contract=off; products by tensor cores are not affected.
NVCC_FLAGS = (
    "-O3 -std=c++17 --fmad=false --threads 0 -lineinfo -Xptxas -v -Werror all-warnings"
    " -Xcompiler -fPIC,-fvisibility=hidden,-ffp-contract=off"
)
# The wheels of PyPI that together are a toolkit.
CUDA_WHEELS = "nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-cccl"


class Toolkit:
    """A CUDA toolkit: its compiler, and the folder of the runtime's static library."""

    def __init__(self, home: Path) -> None:
        self.nvcc = home / "bin" / "nvcc"
        folders = [home / "lib64", home / "lib", *home.glob("targets/*/lib")]
        self.libraries = next((folder for folder in folders if (folder / "libcudart_static.a").exists()), None)
        self.headers = (home / "include" / "cuda_runtime.h").exists()

    def is_complete(self) -> bool:
        return self.nvcc.exists() and self.headers and self.libraries is not None


def toolkit_homes() -> list[Path]:
    """Where a toolkit may be, in the order of preference: named, on the path, installed, or wheels beside us."""
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    nvcc = shutil.which("nvcc")
    if nvcc:
        homes.append(Path(nvcc).resolve().parent.parent)
    homes.append(Path("/usr/local/cuda"))
    for entry in dict.fromkeys(map(Path, [sysconfig.get_path("purelib"), *sys.path])):
        homes += sorted((entry / "nvidia").glob("cu[0-9]*"), reverse=True)
    return homes


@functools.cache
def find_toolkit() -> Toolkit | None:
    """The toolkit to build with, if there is one and it is wanted; a line on stderr says why there is none."""
    wanted = os.environ.get("MOELENS_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        raise SystemExit(f"MOELENS_CUDA must be auto, 0 or 1, found {wanted!r}")
    if wanted == "0" or EMULATE or SANITIZE:
        return None
    homes = toolkit_homes()
    found = next((toolkit for toolkit in map(Toolkit, homes) if toolkit.is_complete()), None)
    if found is None:
        line = (
            "moelens: no complete CUDA toolkit is at " + ", ".join(dict.fromkeys(map(str, homes))) + ", so the kernels"
            f" for GPUs are not built; with a GPU, set CUDA_HOME or install: pip install {CUDA_WHEELS}"
        )
        if wanted == "1":
            raise SystemExit(line)
        print(line, file=sys.stderr)  # noqa: T201
    return found


def cuda_targets(nvcc: Path) -> list[str]:
    """nvcc's flags for the architectures."""
    named = os.environ.get("MOELENS_CUDA_ARCHS", "").replace(",", " ").replace(";", " ").split()
    if named == ["native"]:
        return ["-arch=native"]
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    archs = named or [arch for arch in CUDA_ARCHS if f"sm_{arch}" in known]  # an older nvcc lacks the newest
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    return [*flags, f"-gencode=arch=compute_{archs[0]},code=compute_{archs[0]}"]


def left_out() -> list[str]:
    """The instruction sets whose kernels are not wanted."""
    wanted = os.environ.get("MOELENS_ISAS", "all")
    if wanted not in ("all", "native"):
        raise SystemExit(f"MOELENS_ISAS must be all or native, found {wanted!r}")
    if wanted == "all":
        return []
    command = [os.environ.get("CXX", "g++"), "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
    defined = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return [name for name, macro in ISA_MACROS.items() if macro not in defined]


def sources(folder: str, *suffixes: str) -> list[str]:
    """Those that take longest to compile come first, so that none of them is left for the end."""
    found = (path for suffix in suffixes for path in (ROOT / "csrc" / folder).rglob(f"*{suffix}"))
    return sorted((str(path.relative_to(ROOT)) for path in found), key=lambda path: ("/variants/" not in path, path))


def extensions() -> list[Extension]:
    """Every module that this machine can build."""
    shared = sources("ops", ".cpp")  # what the bindings of every module check arguments with
    emulation = sources("cuda/emu", ".cpp")
    device = [path for path in sources("cuda", ".cu", ".cpp") if path not in emulation]
    if EMULATE:
        return [Extension("moelens._cuda_emu", sources=[*device, *emulation, *shared])]
    modules = [Extension("moelens._cpu", sources=[*sources("cpu", ".cpp"), *shared])]
    if find_toolkit():
        modules.append(Extension("moelens._cuda", sources=[*device, *shared]))
    return modules


def ninja_path(path: Path | str) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


RULES = """\
rule compile
  command = $cxx -MMD -MF $out.d $flags $extra -c $in -o $out
  depfile = $out.d
  deps = gcc
rule compile_cuda
  command = $nvcc -MD -MF $out.d $flags -c $in -o $out > $out.ptxas 2>&1 || (cat $out.ptxas; exit 1)
  depfile = $out.d
  deps = gcc
rule link
  command = $cxx -shared $flags -o $out $in $libraries -pthread"""


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

        lines = [RULES, f"cxx = {os.environ.get('CXX', 'g++')}", f"flags = {self.flags()}"]
        toolkit = find_toolkit()
        if toolkit:
            lines.append(f"nvcc = {toolkit.nvcc}")
        outputs = [self.graph(extension, folder, lines) for extension in self.extensions]
        (folder / "build.ninja").write_text("\n".join([*lines, f"default {' '.join(outputs)}", ""]))
        jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        subprocess.check_call([str(Path(ninja.BIN_DIR) / "ninja"), "-C", str(folder), *jobs])

    def graph(self, extension: Extension, folder: Path, lines: list[str]) -> str:
        """Add the build of one module to `lines`; returns its output."""
        objects = []
        for source in extension.sources:
            target = ninja_path(folder / f"{source}.o")
            by_nvcc = source.endswith(".cu") and not EMULATE
            if f"build {target}: compile {ninja_path(ROOT / source)}" not in lines:  # two modules share some
                lines.append(f"build {target}: compile{'_cuda' if by_nvcc else ''} {ninja_path(ROOT / source)}")
                if by_nvcc:
                    lines.append(f"  flags = {self.nvcc_flags()}")
                elif source.endswith(".cu"):
                    lines.append("  extra = -x c++")
            objects.append(target)
        output = Path(self.get_ext_fullpath(extension.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        lines.append(f"build {ninja_path(output)}: link {' '.join(objects)}")
        toolkit = find_toolkit()
        if extension.name == "moelens._cuda" and toolkit:
            # The static runtime: imports where there is no driver, and keeps out of the way of the one that torch has.
            lines.append(f"  libraries = -L{toolkit.libraries} -lcudart_static -ldl -lrt")
        return ninja_path(output)

    def folder_name(self) -> str:
        name = f"ninja-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        name += ("-emulated" if EMULATE else "") + ("-tiles" if EMULATE_TILES else "")
        return name + ("-sanitize" if SANITIZE else "")

    def flags(self) -> str:
        import pybind11

        includes = [f"-I{ROOT / 'csrc' / 'cpu'}"]
        includes += [f"-isystem {path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]
        if EMULATE:
            includes.append("-DMOELENS_CUDA_EMULATION -Wno-unknown-pragmas")
        if EMULATE_TILES:
            includes.append("-DMOELENS_EMULATE_TILES")
        includes += [f"-DMOELENS_WITHOUT_{name}" for name in left_out()]
        level = INSTRUMENTED if SANITIZE else OPTIMISED
        return " ".join([level, COMMON, *includes, os.environ.get("CXXFLAGS", "")]).strip()

    def nvcc_flags(self) -> str:
        toolkit = find_toolkit()
        assert toolkit is not None
        compiler = ["-ccbin", os.environ["CXX"]] if "CXX" in os.environ else []
        return " ".join([NVCC_FLAGS, *compiler, *cuda_targets(toolkit.nvcc)])


setup(ext_modules=extensions(), cmdclass={"build_ext": NinjaBuild})
