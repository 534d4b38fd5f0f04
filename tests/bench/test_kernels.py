"""The benches of the ops: every op is run and counted, shares are of the ceiling that binds, rivals run in turn."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.attention import AttentionBench, AttentionShape
from bench.ceilings import Ceiling, CeilingMeter, make_storage
from bench.kernels import Setup, bench_linear, bench_pack, bench_row_wise, bench_sample, start_zentorch
from bench.measurement import Call, Measurement, least_seconds, measure
from moelens.ops.native import NativeOps

SETUP = Setup(NativeOps(1), torch.bfloat16, tokens=[2], linear_tokens=[2], row_tokens=4, cold_bytes=1 << 20)


class FixedMeter:
    def measure(self) -> Ceiling:
        return Ceiling(1e12, 1e10)

    measure_settled = measure


def once(call: Call) -> Measurement:
    return measure(call, FixedMeter(), 1)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.measurement.ROUND_SECONDS", 0.0)


def test_row_wise_sampling_and_packing_ops_run() -> None:
    measured = [once(call) for bench in (bench_row_wise, bench_pack) for call in bench(SETUP)]
    measured += [once(call) for call in bench_sample(SETUP, rows=2)]
    ops = list(dict.fromkeys(one.call.op for one in measured))
    assert ops == ["rms_norm", "split_qkv", "route", "write_kv", "pack_matrix", "pack_gate_up", "sample"]
    assert all(one.of == "GB/s" and one.share > 0 for one in measured)


def test_torch_runs_beside_linear_and_one_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.kernels.LINEAR_SHAPES", ((32, 64),))
    threads = torch.get_num_threads()
    try:
        ((call, rivals),) = bench_linear(SETUP, 2)
        found = measure(call, FixedMeter(), 2, rivals)  # type: ignore[arg-type]
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert found.versus["torch"] > 0 and " x torch" in found.line()


def test_int8_weights_are_multiplied_as_they_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.kernels.LINEAR_SHAPES", ((32, 64),))
    setup = replace(SETUP, int8=True)
    call, _ = next(bench_linear(setup, 1))
    assert call.nbytes == 32 * 64
    result = call.calls[0]()
    assert isinstance(result, torch.Tensor) and result.isfinite().all() and result.float().std() > 0


def test_attention_counts_keys_and_pairs() -> None:
    shape = AttentionShape(4, 2, 32, cache_bytes=1 << 20)
    bench = AttentionBench(SETUP.ops, shape)
    (decode,), (prefill,) = bench.decode([64]), bench.prefill([64])
    assert shape.token_bytes == 256 and shape.blocks == 128
    assert (decode.rows, decode.nbytes) == (64, 64 * 64 * 256)  # as many as the cache holds
    assert prefill.flops == 4 * 32 * 4 * 64 * (64 * 65 // 2)
    assert once(decode).share > 0


def test_shares_are_of_the_ceiling_that_binds() -> None:
    ceiling = Ceiling(100.0, 10.0)
    multiplying, reading = Call("a", 1, [], 1000.0, 10.0), Call("b", 1, [], 10.0, 1000.0)
    assert least_seconds(multiplying, ceiling) == 10.0 and least_seconds(reading, ceiling) == 100.0
    assert least_seconds(Call("c", 1, [], 1000.0, 10.0, of_memory=True), ceiling) == 1.0
    assert Measurement(multiplying, 20.0, ceiling, [0.5]).of == "GFLOP/s"
    assert Measurement(reading, 200.0, ceiling, [0.4, 0.5, 0.7]).share == 0.5


def test_rivals_run_in_turn_with_ours() -> None:
    order: list[str] = []
    call = Call("a", 1, [lambda: order.append("ours")], 1.0, 1.0)

    def rival() -> float:
        order.append("rival")
        return 1e9

    found = measure(call, FixedMeter(), 2, {"rival": rival})  # type: ignore[arg-type]
    assert order[-4:] == ["ours", "rival", "ours", "rival"]
    assert found.versus["rival"] > 1


def test_ceilings_are_rates() -> None:
    ceiling = CeilingMeter(SETUP.ops.isa, 1, make_storage((1 << 18,), torch.float32)).measure()
    assert ceiling.flops_per_second > 1e7 and ceiling.bytes_per_second > 1e6


def test_storage_is_aligned_to_huge_pages() -> None:
    storage = make_storage((3, 5), torch.bfloat16)
    assert storage.shape == (3, 5) and not storage.any() and storage.data_ptr() % (2 << 20) == 0


def test_zentorch_that_is_not_there_is_left_out_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert start_zentorch("/nowhere/python", 1) is None
    assert "zentorch is left out" in capsys.readouterr().err


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from bench.roofline_plot import draw

    ceiling = Ceiling(1e11, 1e10)
    found = [
        Measurement(Call("experts", 8, [], 1e9, 1e7), 0.02, ceiling, [0.5]),
        Measurement(Call("sample", 8, [], 0.0, 1e7), 0.002, ceiling, [0.5]),
    ]
    draw(found, tmp_path / "roofline.png", "title")
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")
