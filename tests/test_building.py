"""What setup.py would compile; nothing is built. Finding a CUDA toolkit is in tests/cuda."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

from moelens import _cpu

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = "import runpy, sys; sys.argv = ['setup.py', '--name']; print(runpy.run_path('setup.py')['left_out']())"


def left_out(**settings: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "MOELENS_ISAS"}
    environment = {**kept, "MOELENS_CUDA": "0", **settings}
    return subprocess.run([sys.executable, "-c", LEFT_OUT], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_all_instruction_sets_are_compiled_by_default() -> None:
    assert left_out().stdout.endswith("[]\n")
    assert left_out(MOELENS_ISAS="all").stdout.endswith("[]\n")


def test_native_leaves_out_what_the_processor_cannot_run() -> None:
    out = set(ast.literal_eval(left_out(MOELENS_ISAS="native").stdout.splitlines()[-1]))
    available = set(_cpu.available_isas())
    assert not {name.lower() for name in out} & available
    assert ("AVX512" in out) == ("avx512" not in available)  # of AMX, the operating system has a say as well


def test_another_choice_is_refused() -> None:
    done = left_out(MOELENS_ISAS="avx2")
    assert done.returncode != 0 and "MOELENS_ISAS must be all or native, found 'avx2'" in done.stderr
