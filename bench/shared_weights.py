"""How much memory several processes take that share one copy of the weights, as the kernel counts it.

    python bench/shared_weights.py MODEL [--workers 2] [--cache FOLDER]

Starts the processes, each with the whole model and a running request, and prints their PSS: a page that n processes
share counts for 1/n in each. The sum should be the weights plus what each process takes beside them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

WORKER = """
import sys
from moelens import LLM, SamplingParams
model, cache = sys.argv[1:]
llm = LLM(model, shared_weights_dir=cache or None, max_num_seqs=8, kv_cache_memory_bytes=64 << 20, max_model_len=512,
          num_threads=1, skip_tokenizer_init=True, use_tqdm_on_load=False)
llm.generate([{"prompt_token_ids": list(range(2, 200))}] * 8, SamplingParams(max_tokens=16, ignore_eos=True,
             detokenize=False), use_tqdm=False)
print(llm.engine.weight_bytes, flush=True)
sys.stdin.read()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cache", help="where the packed weights go (default: a temporary folder)")
    found = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        cache = found.cache or temporary
        weights, alone = measure(found.model, "", 1)
        rest = alone[0] - weights
        print(f"weights {megabytes(weights)}; one process alone {megabytes(alone[0])}, so {megabytes(rest)} more")
        _, shared = measure(found.model, cache, found.workers)
    total, allowed = sum(shared), weights + found.workers * rest
    print(f"{found.workers} processes sharing: " + " + ".join(map(megabytes, shared)) + f" = {megabytes(total)}")
    print(f"weights + {found.workers} x the rest = {megabytes(allowed)}: {total / allowed:.3f} of it")


def measure(model: str, cache: str, workers: int) -> tuple[int, list[int]]:
    """Bytes of the weights, and the PSS of each of `workers` processes while all of them are there."""
    started = []
    for _ in range(workers):
        command = [sys.executable, "-c", WORKER, model, cache]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout is not None
        weights = int(started[-1].stdout.readline())
    sizes = [pss_bytes(process.pid) for process in started]
    for process in started:
        process.communicate()
    return weights, sizes


def pss_bytes(process: int) -> int:
    """A process's proportional set size."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:.1f} MB"


if __name__ == "__main__":
    main()
