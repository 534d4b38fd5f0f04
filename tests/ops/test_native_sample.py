"""sample of every instruction set against the reference, and its edges."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moelens import _cpu
from moelens.ops.interface import SamplingRows
from moelens.ops.native import NativeOps
from moelens.ops.reference import ReferenceOps

pytestmark = pytest.mark.parametrize("isa", _cpu.available_isas())


@cache
def native_ops(isa: str, threads: int) -> NativeOps:
    return NativeOps(threads, isa)


def sampling(
    count: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, uniform: float = 0.5
) -> SamplingRows:
    """The same rule for `count` rows."""
    floats = [torch.full((count,), value) for value in (temperature, top_p, min_p, uniform)]
    return SamplingRows(floats[0], torch.full((count,), top_k, dtype=torch.int32), *floats[1:])


def pick(ops: NativeOps | ReferenceOps, logits: list[float] | torch.Tensor, **rule: float) -> int:
    row = torch.as_tensor(logits, dtype=torch.float32)[None]
    return int(ops.sample(row, sampling(1, **rule))[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("vocab", [1, 3, 16, 64, 65, 1000, 4097])
def test_sample_picks_what_the_definition_picks(isa: str, vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    rows = 256
    logits = torch.randn(rows, vocab, generator=generator) * torch.rand(rows, 1, generator=generator) * 8
    one_of = lambda *choices: torch.tensor(choices)[torch.randint(len(choices), (rows,), generator=generator)]  # noqa: E731
    rule = SamplingRows(
        one_of(0.0, 0.3, 1.0, 2.5),
        one_of(0, 0, 1, 2, 5, 40, 200, 10_000).int(),
        one_of(1.0, 1.0, 1e-9, 0.1, 0.5, 0.9, 0.999),
        one_of(0.0, 0.0, 0.0, 0.01, 0.2, 1.0),
        torch.rand(rows, generator=generator),
    )
    found = native_ops(isa, 2).sample(logits, rule)
    expected = ReferenceOps().sample(logits, rule)
    # a uniform number may fall on a border between two tokens, nearer than float32 tells
    assert int((found != expected).sum()) <= 1


def test_sample_of_flat_logits_is_uniform(isa: str) -> None:
    vocab = 200
    uniform = (torch.arange(vocab) + 0.5) / vocab
    rule = SamplingRows(
        torch.ones(vocab), torch.zeros(vocab, dtype=torch.int32), torch.ones(vocab), torch.zeros(vocab), uniform
    )
    ids = native_ops(isa, 1).sample(torch.full((vocab, vocab), 3.5), rule)
    assert torch.equal(ids, torch.arange(vocab, dtype=torch.int32))


def test_ties_go_to_the_lower_id(isa: str) -> None:
    ops = native_ops(isa, 1)
    logits = torch.zeros(300)
    logits[[70, 130, 131, 299]] = 2.0
    assert pick(ops, logits, temperature=0.0) == 70
    assert [pick(ops, logits, top_k=2, uniform=u) for u in (0.0, 0.49, 0.51, 0.99)] == [70, 70, 130, 130]
    assert [pick(ops, logits, min_p=1.0, uniform=u) for u in (0.1, 0.3, 0.6, 0.9)] == [70, 130, 131, 299]
    assert pick(ops, logits, top_p=1e-9, uniform=0.99) == 70


def test_masked_tokens_are_never_picked(isa: str) -> None:
    ops = native_ops(isa, 1)
    logits = torch.full((1000,), -math.inf)
    logits[[3, 998]] = torch.tensor([1.0, 1.0])
    top = {"top_k": 500}
    for rule in ({}, top, {"top_p": 0.999}, {"min_p": 0.5}, top | {"top_p": 0.9999}):
        assert [pick(ops, logits, uniform=u, **rule) for u in (0.0, 0.4, 0.6, 0.99999994)] == [3, 3, 998, 998]
    assert pick(ops, logits, temperature=0.0) == 3


@pytest.mark.parametrize("spread", [0.0, 0.1, 2.0, 30.0])
def test_a_wide_nucleus_is_cut_where_the_definition_cuts(isa: str, spread: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(20_000, generator=generator) * spread).round(decimals=2)  # many ties
    cases = [(p, k, m) for p in (0.01, 0.3, 0.95, 0.99999) for k in (0, 6000) for m in (0.0, 0.1)]
    uniforms = (0.00123, 0.51237, 0.99877)
    rule = SamplingRows(
        torch.ones(len(cases) * 3),
        torch.tensor([k for _, k, _ in cases for _ in uniforms], dtype=torch.int32),
        torch.tensor([p for p, _, _ in cases for _ in uniforms]),
        torch.tensor([m for *_, m in cases for _ in uniforms]),
        torch.tensor([u for _ in cases for u in uniforms]),
    )
    rows = logits.expand(len(cases) * 3, -1).contiguous()
    found, expected = native_ops(isa, 2).sample(rows, rule), ReferenceOps().sample(rows, rule)
    # Sums of thousands of weights differ in the seventh digit, so a border may move by a token.
    assert int((found != expected).sum()) <= 1
    assert (found - expected).abs().max() < 20


@pytest.mark.parametrize("vocab", [5, 9000])  # of which 5000 are too many to order
def test_top_p_is_a_share_of_what_min_p_and_top_k_keep(isa: str, vocab: int) -> None:
    ops = native_ops(isa, 1)
    logits = torch.full((vocab,), -60.0)
    logits[:5] = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05]).log()
    tops = [pick(ops, logits, top_k=2, top_p=0.5, uniform=u) for u in (0.0, 0.99)]
    assert tops == [0, 0], "0.4 is more than half of 0.7"
    assert [pick(ops, logits, min_p=0.3, top_p=0.45, uniform=u) for u in (0.0, 0.99)] == [0, 0], "and of 0.85"
    assert [pick(ops, logits, top_p=0.45, uniform=u) for u in (0.0, 0.99)] == [0, 1], "but not 0.45 of all"
    flat = torch.zeros(vocab)
    for top_k in (4, vocab * 5 // 9):
        uniforms = (0.001, 0.499, 0.999)
        kept = top_k // 2
        found = [pick(ops, flat, top_k=top_k, top_p=0.5, uniform=u) for u in uniforms]
        assert (
            found
            == [int(u * kept) for u in uniforms]
            == [pick(ReferenceOps(), flat, top_k=top_k, top_p=0.5, uniform=u) for u in uniforms]
        )


@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 100, 4097])
def test_mask_logits_forbids_what_the_bits_forbid(isa: str, vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(7, vocab, generator=generator)
    allowed = torch.randint(-(2**31), 2**31, (4, -(-vocab // 32)), generator=generator).int()
    allowed[0], allowed[1, ::2], allowed[2] = -1, 0, 0
    rows = torch.tensor([5, 0, 2, 6], dtype=torch.int32)
    expected = logits.clone()
    for mask, row in enumerate(rows.tolist()):
        for token_id in range(vocab):
            if not int(allowed[mask, token_id // 32]) >> token_id % 32 & 1:
                expected[row, token_id] = -math.inf
    for ops in (native_ops(isa, 2), ReferenceOps()):
        found = logits.clone()
        ops.mask_logits(found, allowed, rows)
        assert torch.equal(found, expected)


def test_wrong_arguments_of_mask_logits_are_named(isa: str) -> None:
    ops, allowed, rows = native_ops(isa, 1), torch.zeros(1, 2, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"mask_logits: allowed must have a bit for each of 65 tokens, found 2 words"):
        ops.mask_logits(torch.zeros(2, 65), allowed, rows)
    with pytest.raises(ValueError, match=r"mask_logits: rows"):
        ops.mask_logits(torch.zeros(2, 64), allowed, rows + 2)


def test_broken_rows_give_minus_one_and_harm_no_other(isa: str) -> None:
    ops = native_ops(isa, 2)
    logits = torch.randn(4, 100, generator=torch.Generator().manual_seed(2))
    clean = ops.sample(logits, sampling(4))
    logits[1, 77] = math.nan
    logits[2] = -math.inf
    found = ops.sample(logits, sampling(4))
    assert found.tolist() == [clean[0], -1, -1, clean[3]]
    assert ops.sample(logits, sampling(4, temperature=0.0)).tolist()[1:3] == [-1, -1]
    assert pick(ops, [0.0, math.inf, 0.0], temperature=0.0) == -1
    assert pick(ops, [0.0, math.inf, 0.0]) == -1


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_row_of_sample_does_not_depend_on_the_batch(isa: str, data: st.DataObject) -> None:
    rows, vocab = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 500))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    logits = torch.randn(rows, vocab, generator=generator)
    rule = {"top_k": data.draw(st.integers(0, 50)), "top_p": data.draw(st.sampled_from([0.5, 1.0]))}
    together = native_ops(isa, 3).sample(logits, sampling(rows, **rule))
    apart = [pick(native_ops(isa, 1), row, **rule) for row in logits]
    assert together.tolist() == apart


def test_wrong_arguments_of_sample_are_named(isa: str) -> None:
    ops = native_ops(isa, 1)
    logits = torch.zeros(2, 5)
    for name, value, bounds in (
        ("temperature", -1.0, r"\[0, "),
        ("top_p", 1.5, r"\[0, 1.000000\], found 1.500000 in row 0"),
        ("min_p", math.nan, r"\[0, 1.000000\], found nan in row 0"),
        ("uniform", 1.0, r"\[0, 1.000000\)"),
    ):
        with pytest.raises(ValueError, match=rf"sample: {name} must be in {bounds}"):
            ops.sample(logits, sampling(2, **{name: value}))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"sample: top_k must be \[R\] = \[2\], found \[3\]"):
        ops.sample(logits, sampling(3))
    with pytest.raises(TypeError, match=r"sample: logits must be float32, found torch\.bfloat16"):
        ops.sample(logits.bfloat16(), sampling(2))
    assert ops.sample(torch.zeros(0, 5), sampling(0)).shape == (0,)
