"""The bench's command line: vLLM's flags, and what is said of those that are not ours."""

from pathlib import Path

import pytest

from moelens.bench.arguments import parse_arguments

RANDOM = ["--model", "m", "--input-len", "8"]


def test_defaults_are_those_of_vllm() -> None:
    options = parse_arguments(RANDOM)
    assert (options.num_prompts, options.num_warmups, options.n, options.seed) == (1000, 0, 1, 0)
    assert (options.temperature, options.detokenize, options.random_range_ratio) == (1.0, True, 0.0)
    assert options.needs_tokenizer


def test_random_input_len_is_another_name_of_input_len() -> None:
    options = parse_arguments(["--model", "m", "--random-input-len", "8", "--random-output-len", "9"])
    assert (options.input_len, options.output_len) == (8, 9)


def test_random_weights_need_no_tokenizer() -> None:
    options = parse_arguments([*RANDOM, "--load-format", "dummy"])
    assert not options.detokenize and not options.needs_tokenizer
    assert parse_arguments([*RANDOM, "--load-format", "dummy", "--tokenizer", "t"]).needs_tokenizer
    assert parse_arguments(["--model", "m", "--load-format", "dummy", "--dataset-path", "f"]).needs_tokenizer


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*RANDOM, "--max-num-seq", "4"], "nearest supported flag is --max-num-seqs"),
        ([*RANDOM, "--output-jsonl=x"], "nearest supported flag is --output-json"),
        ([*RANDOM, "--async-engine"], "--async-engine is not supported: requests are always"),
        ([*RANDOM, "--backend", "hf"], "--backend is not supported"),
        ([*RANDOM, "--pipeline-parallel-size", "2"], "one process runs the whole model"),
        (["--model", "m"], "need --input-len"),
        (["--input-len", "8"], "--model"),
        ([*RANDOM, "--dataset-path", "f"], "are for random prompts"),
        (["--model", "m", "--dataset-path", "f", "--dataset-name", "random"], "leave it or --dataset-path out"),
        ([*RANDOM, "--random-range-ratio", "1"], "must be in [0, 1), got 1.0"),
        ([*RANDOM, "--num-prompts", "0"], "at least 1, got '0'"),
        ([*RANDOM, "--num-prompts", "2", "--num-warmups", "3"], "at most --num-prompts 2, got 3"),
        ([*RANDOM, "--kv-cache-memory-bytes", "lots"], "'lots' is not a size"),
        ([*RANDOM, "--load-format", "pt"], "invalid choice: 'pt'"),
    ],
)
def test_a_wrong_flag_is_named_with_the_remedy(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(arguments)
    assert said in capsys.readouterr().err


def test_every_option_is_read() -> None:
    command = (
        "--model m --tokenizer t --revision r --load-format dummy --dtype float32 --device cpu "
        "--quantization int8 --dataset-path d --output-len 3 --num-prompts 4 --num-warmups 2 --no-oversample --n 5 "
        "--temperature 0.5 --seed 6 --disable-detokenize --max-num-seqs 7 --max-num-batched-tokens 8 --max-model-len 9 "
        "--kv-cache-memory-bytes 1KiB --cpu-memory-bytes 2KiB --cpu-weights-memory-bytes 1500 "
        "--no-enable-prefix-caching --num-threads 1 --block-size 64 --parts 2 --ring-layers 3 --load-chunks 4 "
        "--resident-layers 0 --no-experts-on-host --output-json o"
    )
    options = parse_arguments(command.split())
    assert options.dataset_path == Path("d") and options.output_json == Path("o")
    assert (options.output_len, options.num_prompts, options.num_warmups, options.oversample) == (3, 4, 2, False)
    assert (options.n, options.temperature, options.seed, options.detokenize) == (5, 0.5, 6, False)
    assert options.engine == {
        "tokenizer": "t",
        "revision": "r",
        "load_format": "dummy",
        "dtype": "float32",
        "device": "cpu",
        "quantization": "int8",
        "max_num_seqs": 7,
        "max_num_batched_tokens": 8,
        "max_model_len": 9,
        "kv_cache_memory_bytes": 1024,
        "cpu_memory_bytes": 2048,
        "cpu_weights_memory_bytes": 1500,
        "enable_prefix_caching": False,
        "num_threads": 1,
        "block_size": 64,
        "parts": 2,
        "ring_layers": 3,
        "load_chunks": 4,
        "resident_layers": 0,
        "experts_on_host": False,
    }
