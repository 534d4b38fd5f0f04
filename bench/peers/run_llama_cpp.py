"""A worker that runs workloads on llama.cpp by llama-cpp-python's low-level interface: one batch, greedy, no text."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import llama_cpp
import numpy as np
from worker import serve_workloads
from workload import Run, Settings, Workload

BATCH_TOKENS = 2048
ERROR = 4  # ggml's level of messages that say why something failed
TOKENS_OF_A_CELL = 256  # llama.cpp rounds each sequence's context up to a multiple of this


class Context:
    """The cache of one workload and a batch to fill; `step` runs rows of (token, position, sequence)."""

    def __init__(self, model: Any, workload: Workload, threads: int, vocab: int) -> None:
        length = -(-(workload.prompt_tokens + workload.output_tokens) // TOKENS_OF_A_CELL) * TOKENS_OF_A_CELL
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = workload.requests * length
        params.n_seq_max = workload.requests
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(model, params)
        if not self._context:
            raise MemoryError(
                f"llama.cpp can't make a context of {params.n_ctx} tokens for {workload.requests} requests"
            )
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._vocab = vocab

    def step(self, rows: Sequence[tuple[int, int, int]], last: Callable[[int], bool]) -> dict[int, int]:
        """The best next token of each sequence whose row's index `last` says so."""
        batch, found = self._batch, {}
        for begin in range(0, len(rows), BATCH_TOKENS):
            part = rows[begin : begin + BATCH_TOKENS]
            batch.n_tokens = len(part)
            for index, (token, position, sequence) in enumerate(part):
                batch.token[index], batch.pos[index] = token, position
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
                batch.logits[index] = last(begin + index)
            status = llama_cpp.llama_decode(self._context, batch)
            if status:
                raise RuntimeError(f"llama_decode failed with {status}")
            for index, (_, _, sequence) in enumerate(part):
                if last(begin + index):
                    pointer = llama_cpp.llama_get_logits_ith(self._context, index)
                    address = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))
                    found[sequence] = int(np.ctypeslib.as_array(address, shape=(self._vocab,)).argmax())
        return found

    def close(self) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)


@llama_cpp.llama_log_callback
def print_errors(level: int, text: bytes, _: object) -> None:
    """In place of thousands of lines about each graph."""
    if level == ERROR:
        sys.stderr.write(text.decode(errors="replace"))


def load(settings: Settings) -> tuple[dict[str, Any], Callable[[Workload, int], Run]]:
    assert settings.gguf is not None
    llama_cpp.llama_log_set(print_errors, None)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(settings.gguf.encode(), params)
    if not model:
        raise ValueError(f"llama.cpp can't load {settings.gguf}: give a GGUF file of {settings.model}")
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def run(workload: Workload, seed: int) -> Run:
        prompts = workload.prompts(settings.vocab, seed)
        context = Context(model, workload, settings.threads, vocab)
        rows = [(token, at, which) for which, ids in enumerate(prompts) for at, token in enumerate(ids)]
        begin = time.perf_counter()
        tokens = first = context.step(rows, lambda index: (index + 1) % workload.prompt_tokens == 0)
        prefilled = time.perf_counter()
        for position in range(workload.prompt_tokens, workload.prompt_tokens + workload.output_tokens - 1):
            tokens = context.step([(token, position, which) for which, token in tokens.items()], lambda _: True)
        end = time.perf_counter()
        context.close()
        return Run(end - begin, prefilled - begin, end - prefilled, [first[which] for which in range(len(prompts))])

    return {"name": "llama.cpp", "version": f"llama-cpp-python {llama_cpp.__version__}"}, run


if __name__ == "__main__":
    serve_workloads(load)
