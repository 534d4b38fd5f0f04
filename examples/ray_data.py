"""A batch job over several workers, by Ray Data: the same lines in, the same results out as `run-batch`.

    pip install 'ray[data]'
    python examples/ray_data.py -i in.jsonl -o results --model path/to/model --workers 2

Input is JSON lines, as in docs/jobs.md, at a path that every worker can read (of a shared disk, or an address such as
s3://… that pyarrow opens). It is cut into parts of some thousand lines; each worker, one for a machine or a GPU, has
the model, takes part after part, and writes results/part-<first line>.jsonl, whole or not at all. A worker that dies is
started again by Ray, and its part given to another. When everything dies, repeat the command: parts that are written
are not run again. Their bytes are those that `run-batch` writes, so it doesn't matter who ran them, or how often.

Workers on one machine share one copy of the weights (--shared-weights-dir) and divide its cores (--num-threads).
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from typing import Any

import ray
from pyarrow import fs

ADDRESS_SCHEMES = ("s3://", "gs://", "hdfs://", "abfs://", "file://")


class Generate:
    """One worker: a model, and the parts of the input that it is given."""

    def __init__(self, given: str, output: str, model: str, options: dict[str, Any]) -> None:
        from moelens.jobs.lines import LineRunner

        self._given, self._output = given, output
        self._runner = LineRunner(model, use_tqdm_on_load=False, **options)

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        """Run a part, {"first_line", "begin", "end"} in bytes of the input; says what was done."""
        files, path = locate(self._given)
        with files.open_input_file(path) as file:
            file.seek(part["begin"])
            content = file.read(part["end"] - part["begin"])
        numbered = enumerate(lines_of(io.BytesIO(content)), start=part["first_line"])
        results = self._runner.run((number, line) for number, line in numbered if not line.isspace())
        write_whole(part_path(self._output, part["first_line"]), b"".join(results))
        return {"first_line": part["first_line"], "results": len(results)}


def cut(given: str, part_lines: int) -> Iterator[dict[str, Any]]:
    """The parts of a file of lines: where each begins and ends, and the number of its first line."""
    files, path = locate(given)
    begin = end = 0
    number, first = 1, 1
    with files.open_input_stream(path) as file:
        for line in lines_of(file):
            end += len(line)
            number += 1
            if number - first == part_lines:
                yield {"first_line": first, "begin": begin, "end": end}
                begin, first = end, number
    if end > begin:
        yield {"first_line": first, "begin": begin, "end": end}


def lines_of(file: Any) -> Iterator[bytes]:
    """The lines of a stream, however long they are."""
    rest = b""
    while chunk := file.read(1 << 20):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line + b"\n" for line in whole)
    if rest:
        yield rest


def locate(name: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or address, and the path there."""
    if name.startswith(ADDRESS_SCHEMES):
        found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(name)
        return found
    return fs.LocalFileSystem(), name


def part_path(output: str, first_line: int) -> str:
    return f"{output}/part-{first_line:010}.jsonl"


def write_whole(name: str, content: bytes) -> None:
    """Write a file that is never seen half done."""
    files, path = locate(name)
    with files.open_output_stream(f"{path}.partial") as file:
        file.write(content)
    files.move(f"{path}.partial", path)


def missing_parts(given: str, output: str, part_lines: int) -> list[dict[str, Any]]:
    """The parts that are not written yet."""
    files, path = locate(output)
    files.create_dir(path, recursive=True)
    written = {info.base_name for info in files.get_file_info(fs.FileSelector(path))}
    parts = cut(given, part_lines)
    return [part for part in parts if part_path("", part["first_line"]).lstrip("/") not in written]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--input", required=True)
    parser.add_argument("-o", "--output", required=True, help="a folder")
    parser.add_argument("--model", required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cpus-per-worker", type=float, default=1)
    parser.add_argument("--gpus-per-worker", type=float, default=0)
    parser.add_argument("--part-lines", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-threads", type=int, help="of each worker")
    parser.add_argument("--kv-cache-memory-bytes", type=int, help="of each worker")
    parser.add_argument("--max-num-seqs", type=int)
    parser.add_argument("--max-model-len", type=int, help="give it where the machines' memories differ")
    parser.add_argument("--shared-weights-dir", help="a folder on each machine's own disk")
    parser.add_argument("--load-format", default="auto")
    found = parser.parse_args()
    names = ("seed", "num_threads", "kv_cache_memory_bytes", "max_num_seqs", "max_model_len", "shared_weights_dir")
    options = {name: value for name in (*names, "load_format") if (value := getattr(found, name)) is not None}
    ray.init(include_dashboard=False)
    parts = missing_parts(found.input, found.output, found.part_lines)
    print(f"{len(parts)} parts to run", flush=True)
    if not parts:
        return
    done = ray.data.from_items(parts, override_num_blocks=len(parts)).map(
        Generate,
        fn_constructor_args=(found.input, found.output, found.model, options),
        compute=ray.data.ActorPoolStrategy(size=found.workers),
        num_cpus=found.cpus_per_worker,
        num_gpus=found.gpus_per_worker,
    )  # Ray Data starts workers again, and repeats what they were at, as often as it takes
    for row in done.iter_rows():
        print(f"part {row['first_line']}: {row['results']} results", flush=True)


if __name__ == "__main__":
    main()
