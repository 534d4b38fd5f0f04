"""Bandwidth between host and device by the size of a copy: `gpu_links.py OUTPUT SECONDS`, a part of gpu.py."""

from __future__ import annotations

import ctypes
import json
import mmap
import sys
import time
from pathlib import Path

import torch

TOTAL_BYTES = 2 << 30
CHUNKS_MIB = (1, 4, 16, 64, 100, 256, 512)


def pinned_bytes(nbytes: int) -> torch.Tensor:
    """Host memory as moelens has it: a mapping of exactly this size, with huge pages, registered with CUDA."""
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    tensor = torch.frombuffer(memory, dtype=torch.uint8).fill_(1)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    begin = time.perf_counter()
    status = torch.cuda.cudart().cudaHostRegister(address, nbytes, 0)
    if int(status) != 0:
        sys.exit(f"cudaHostRegister of {nbytes} bytes gave {status}")
    print(f"registered {nbytes / 1e9:.1f} GB in {time.perf_counter() - begin:.2f} s")
    return tensor


def copy_in_chunks(to: torch.Tensor, source: torch.Tensor, chunk: int, stream: torch.cuda.Stream) -> None:
    with torch.cuda.stream(stream):
        for begin in range(0, source.numel(), chunk):
            to[begin : begin + chunk].copy_(source[begin : begin + chunk], non_blocking=True)


def gigabytes_per_second(copies: list[tuple[torch.Tensor, torch.Tensor]], chunk: int) -> float:
    """Of all copies together, each on a stream of its own; the median of five."""
    streams = [torch.cuda.Stream() for _ in copies]
    times = []
    for _ in range(6):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for (to, source), stream in zip(copies, streams, strict=True):
            copy_in_chunks(to, source, chunk, stream)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return sum(source.numel() for _, source in copies) / sorted(times[1:])[2] / 1e9


def main(output: str, seconds: str) -> None:
    end = time.monotonic() + float(seconds)
    up_host, down_host = pinned_bytes(TOTAL_BYTES), pinned_bytes(TOTAL_BYTES)
    up_device, down_device = (torch.ones(TOTAL_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2))
    rows: list[dict[str, object]] = []
    for mib in CHUNKS_MIB:
        up, down = (up_device, up_host), (down_host, down_device)
        rows.append(
            {
                "chunk MiB": mib,
                "to device GB/s": gigabytes_per_second([up], mib << 20),
                "to host GB/s": gigabytes_per_second([down], mib << 20),
                "both at once GB/s": gigabytes_per_second([up, down], mib << 20),
            }
        )
        Path(output).write_text(json.dumps(rows))
        if time.monotonic() > end:
            break
    pageable = torch.ones(TOTAL_BYTES // 4, dtype=torch.uint8)
    rows.append(
        {
            "chunk MiB": "64, pageable",
            "to device GB/s": gigabytes_per_second([(up_device[: len(pageable)], pageable)], 64 << 20),
        }
    )
    Path(output).write_text(json.dumps(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
