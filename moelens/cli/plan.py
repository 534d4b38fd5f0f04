"""`python -m moelens plan`: before a job runs, how fast it will be, what limits it, and what would lift the limit."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moelens.cli.flags import add_plan_flags
from moelens.cli.parser import Parser, json_object, parse_bytes, positive
from moelens.devices import parse_device
from moelens.errors import ConfigError, MoelensError
from moelens.plan import Streaming

if TYPE_CHECKING:
    from moelens.cost.workload import Workload

logger = logging.getLogger("moelens")

DESCRIPTION = """\
Say how many tokens a second a job will make, which resource limits it and what would lift the limit; nothing is loaded
and no GPU is needed. --model is a folder with a config.json, or the name of a known model. --hardware this measures
this machine, in under a minute the first time. Figures of named machines come from data files that say where from."""


def make_parser() -> Parser:
    """The flags of plan."""
    parser = Parser(
        prog="python -m moelens plan",
        usage="%(prog)s --model MODEL (--requests N --prompt-tokens P --output-tokens G | --dataset FILE) [flags]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a folder, a file config.json, or a known name")
    parser.add_argument("--hf-overrides", type=json_object, help="entries of config.json")
    parser.add_argument("--quantization", choices=("int8",), help="of the weights, as they are loaded")
    parser.add_argument("--hardware", default="this", help="this, a known name, or a file (default: this)")
    parser.add_argument(
        "--device", default="cpu", help="of this machine: cpu, cuda or emulated:link=4GB/s,memory=600MB"
    )
    parser.add_argument("--refresh", action="store_true", help="measure this machine again")
    work = parser.add_argument_group("workload")
    work.add_argument("--requests", type=positive)
    work.add_argument("--prompt-tokens", type=positive, help="the mean")
    work.add_argument("--prompt-max", type=positive, help="the longest, when lengths vary")
    work.add_argument("--output-tokens", type=positive)
    work.add_argument("--dataset", type=Path, help='lines {"prompt_tokens": 98, "output_tokens": 32}')
    limits = parser.add_argument_group("what is fixed; the rest is chosen")
    limits.add_argument("--kv-memory", type=parse_bytes, help="for the key/value cache, e.g. 70GB")
    limits.add_argument("--host-memory", type=parse_bytes, help="for weights, cache and activations together")
    limits.add_argument("--weights-memory", type=parse_bytes, help="of that, for weights; other experts are read")
    limits.add_argument("--disk-bandwidth", type=parse_bytes, help="bytes a second that files are read at, e.g. 3GB")
    limits.add_argument("--device-memory", type=parse_bytes, help="of the device, in place of the file's")
    limits.add_argument("--max-num-batched-tokens", type=positive, help="rows of a step")
    limits.add_argument("--max-num-seqs", type=positive, help="requests of a step")
    limits.add_argument("--num-threads", type=positive, help="of this machine")
    add_plan_flags(limits)
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--plot", type=Path, help="draw throughput over memory, lanes over time and rooflines")
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    found = make_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        return _plan(found)
    except MoelensError as error:
        logger.error("plan: %s", error)
        return 1


def _plan(found: argparse.Namespace) -> int:
    from moelens.planning import advice, report
    from moelens.planning.default import BLOCK_TOKENS

    workload = _workload(found)
    wishes = advice.Wishes(
        kv_bytes=found.kv_memory,
        host_bytes=found.host_memory,
        device_bytes=found.device_memory,
        step_tokens=found.max_num_batched_tokens,
        max_requests=found.max_num_seqs,
        threads=found.num_threads,
        weight_bytes=found.weights_memory,
        disk_bytes_per_second=found.disk_bandwidth,
        block_tokens=found.block_size or BLOCK_TOKENS,
        streaming=Streaming.of(found),
    )
    model = os.path.expanduser(found.model)
    outlook = advice.advise(
        advice.read_model(model, found.hf_overrides, found.quantization),
        model,
        found.hardware,
        workload,
        wishes,
        device=parse_device(found.device),
        refresh=found.refresh,
    )
    sys.stdout.write(json.dumps(report.to_json(outlook), indent=2) + "\n" if found.json else report.to_text(outlook))
    if found.plot is not None:
        from moelens.planning.plot import draw

        draw(outlook, found.plot)
    return 0


def _workload(found: argparse.Namespace) -> Workload:
    from moelens.cost.workload import Workload

    sizes = (found.requests, found.prompt_tokens, found.output_tokens)
    if found.dataset is not None:
        if any(size is not None for size in (*sizes, found.prompt_max)):
            raise ConfigError("--dataset has the requests and their lengths: leave it or the other flags out.")
        return _read_dataset(found.dataset)
    if any(size is None for size in sizes):
        raise ConfigError("A workload needs --requests, --prompt-tokens and --output-tokens, or --dataset.")
    if found.prompt_max is not None:
        return Workload.spread(found.requests, found.prompt_tokens, found.prompt_max, found.output_tokens)
    return Workload.even(*sizes)


def _read_dataset(path: Path) -> Workload:
    from moelens.cost.workload import Workload

    prompts: list[int] = []
    outputs: list[int] = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    record = json.loads(line)
                    prompts.append(_length(record, "prompt_tokens", path, number))
                    outputs.append(_length(record, "output_tokens", path, number))
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"--dataset {path} can't be read: {error}. Give a file of JSON lines.") from error
    return Workload(prompts, outputs)


def _length(record: object, name: str, path: Path, number: int) -> int:
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f'{path}, line {number}: "{name}" must be a whole number of at least 1, got {value!r}.')
    return value
