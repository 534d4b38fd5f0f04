"""The flags of `python -m moelens.bench`: vLLM's names and defaults."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moelens.cli.flags import DEVICE_HELP, add_engine_flags, engine_arguments
from moelens.cli.parser import Parser, natural, positive

# What to say of flags of vLLM's bench whose nearest name would mislead.
_REFUSED = {
    "--backend": "there is one backend; compare with another by running its own bench on the same --dataset-path",
    "--async-engine": "requests are always all given at once",
}


@dataclass(frozen=True)
class Options:
    """What was asked; `engine` are arguments of LLM. None: the dataset's own, for `input_len` and `output_len`."""

    model: str
    dataset_path: Path | None
    input_len: int | None
    output_len: int
    random_range_ratio: float
    num_prompts: int
    num_warmups: int
    oversample: bool
    n: int
    temperature: float
    seed: int
    detokenize: bool
    engine: Mapping[str, Any]
    output_json: Path | None
    trace: Path | None
    timeline: Path | None

    @property
    def needs_tokenizer(self) -> bool:
        """Token ids in and token ids out need none; so it is for random weights, whose text nobody reads."""
        return self.dataset_path is not None or self.detokenize


def parse_arguments(argv: Sequence[str] | None = None) -> Options:
    """Options from the command line; prints a message and exits on a flag that is wrong or unknown."""
    parser = _make_parser()
    found = parser.parse_args(argv)
    if found.dataset_path is None and found.dataset_name is None:
        found.dataset_name = "random"
    _check(parser, found)
    random_text = found.load_format == "dummy" and found.tokenizer is None and found.dataset_path is None
    return Options(
        model=found.model,
        dataset_path=found.dataset_path,
        input_len=found.input_len,
        output_len=found.output_len,
        random_range_ratio=found.random_range_ratio,
        num_prompts=found.num_prompts,
        num_warmups=found.num_warmups,
        oversample=not found.no_oversample,
        n=found.n,
        temperature=found.temperature,
        seed=found.seed,
        detokenize=not (found.disable_detokenize or random_text),
        engine=engine_arguments(found),
        output_json=found.output_json,
        trace=found.trace,
        timeline=found.timeline,
    )


def _make_parser() -> Parser:
    parser = Parser(
        prog="python -m moelens.bench",
        description="Measure the throughput of a model on one workload; loading it is timed apart.",
        refused=_REFUSED,
    )
    model = parser.add_argument_group("model")
    model.add_argument("--model", required=True, help="a checkpoint's folder, or the hub's name of one")
    model.add_argument("--tokenizer", help="folder or name of another tokenizer")
    model.add_argument("--revision", help="branch, tag or commit on the hub")
    model.add_argument("--load-format", choices=("auto", "dummy"), default="auto", help="dummy: random weights")
    model.add_argument("--dtype", default="auto", help="auto, bfloat16 or float32")
    model.add_argument("--quantization", help="int8: quantise the weights as they are loaded")
    model.add_argument("--device", default="auto", help=DEVICE_HELP)

    work = parser.add_argument_group("workload")
    work.add_argument("--dataset-name", choices=("random",), help="random token ids (the default without a path)")
    work.add_argument("--dataset-path", type=Path, help='a file of lines {"prompt": "…"}; other keys are not read')
    work.add_argument("--input-len", "--random-input-len", type=positive, help="tokens of a random prompt")
    work.add_argument("--output-len", "--random-output-len", type=positive, default=128, help="tokens to generate")
    work.add_argument("--random-range-ratio", type=float, default=0.0, help="lengths vary by ± this share, in [0, 1)")
    work.add_argument("--num-prompts", type=positive, default=1000)
    work.add_argument("--num-warmups", type=natural, default=0, help="of these, run first without being counted")
    work.add_argument("--no-oversample", action="store_true", help="don't repeat a dataset shorter than --num-prompts")
    work.add_argument("--n", type=positive, default=1, help="texts per prompt")
    work.add_argument("--temperature", type=float, default=1.0, help="0: greedy")
    work.add_argument("--seed", type=int, default=0)
    work.add_argument("--disable-detokenize", action="store_true", help="leave the output as token ids")

    add_engine_flags(parser.add_argument_group("engine"))

    parser.add_argument("--output-json", type=Path, help="write the report there too")
    parser.add_argument("--trace", type=Path, help="write when each task ran to a .json file, for Perfetto")
    parser.add_argument("--timeline", type=Path, help="draw when each task ran to a .png file")
    return parser


def _check(parser: argparse.ArgumentParser, found: argparse.Namespace) -> None:
    if found.dataset_path is not None:
        if found.dataset_name is not None:
            parser.error("--dataset-name random makes its own prompts; leave it or --dataset-path out")
        if found.input_len is not None or found.random_range_ratio:
            parser.error(
                "--input-len and --random-range-ratio are for random prompts; leave them or --dataset-path out"
            )
    elif found.input_len is None:
        parser.error("random prompts need --input-len; or give --dataset-path")
    for flag, path, ending in (("--trace", found.trace, ".json"), ("--timeline", found.timeline, ".png")):
        if path is not None and path.suffix != ending:
            parser.error(f"{flag} must name a {ending} file, got {str(path)!r}")
    if not 0 <= found.random_range_ratio < 1:
        parser.error(f"--random-range-ratio must be in [0, 1), got {found.random_range_ratio}")
    if found.num_warmups > found.num_prompts:
        parser.error(f"--num-warmups must be at most --num-prompts {found.num_prompts}, got {found.num_warmups}")
