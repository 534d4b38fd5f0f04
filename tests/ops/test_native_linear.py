"""linear and pack_matrix of every instruction set against float64, and their independence of the batch."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moelens import _cpu
from moelens.ops.interface import Matrix
from moelens.ops.native import NativeOps

DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-3}


@cache
def native_ops(isa: str, threads: int) -> NativeOps:
    return NativeOps(threads, isa)


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


def pack(ops: NativeOps, source: torch.Tensor) -> Matrix:
    storage = torch.full(ops.matrix_shape(*source.shape, source.dtype), float("nan"), dtype=source.dtype)
    ops.pack_matrix(source, storage)
    return Matrix(storage, *source.shape)


@pytest.mark.parametrize("isa", _cpu.available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "inner", "columns"),
    [(1, 64, 32), (8, 7, 9), (5, 33, 70), (12, 128, 31), (13, 96, 64), (41, 5001, 33), (200, 65, 100)],
)
def test_linear_is_the_product(isa: str, dtype: torch.dtype, rows: int, inner: int, columns: int) -> None:
    ops = native_ops(isa, 2)
    x, weight = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
    bias, residual = torch.randn(columns).to(dtype), torch.randn(rows, columns).to(dtype)
    matrix, product = pack(ops, weight), x.double() @ weight.double().T
    assert relative_error(ops.linear(x, matrix), product) < TOLERANCE[dtype]
    assert relative_error(ops.linear(x, matrix, dtype=torch.float32), product) < 1e-5
    full = ops.linear(x, matrix, bias=bias, residual=residual, scale=0.5)
    assert full.dtype == dtype
    assert relative_error(full, residual.double() + 0.5 * (product + bias.double())) < TOLERANCE[dtype]
    wide = ops.linear(x, matrix, bias=bias, residual=residual.float() + 1e-3, scale=0.5)
    assert wide.dtype == torch.float32
    assert relative_error(wide, residual.double() + 1e-3 + 0.5 * (product + bias.double())) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("isa", _cpu.available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_of_no_rows_is_empty(isa: str, dtype: torch.dtype) -> None:
    ops = native_ops(isa, 2)
    assert ops.linear(torch.empty(0, 8, dtype=dtype), pack(ops, torch.ones(3, 8, dtype=dtype))).shape == (0, 3)


@pytest.mark.parametrize("isa", _cpu.available_isas())
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_row_of_linear_is_the_same_bits_in_every_batch(isa: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    inner, columns = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 130))
    rows = data.draw(st.integers(1, 60))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    x = torch.randn(rows, inner, generator=generator).to(dtype)
    many = native_ops(isa, data.draw(st.integers(1, 3)))
    matrix = pack(many, torch.randn(columns, inner, generator=generator).to(dtype))
    together = many.linear(x, matrix, dtype=torch.float32)
    begin = data.draw(st.integers(0, rows - 1))
    end = data.draw(st.integers(begin + 1, rows))
    apart = native_ops(isa, 1).linear(x[begin:end].contiguous(), matrix, dtype=torch.float32)
    assert torch.equal(together[begin:end], apart)


@pytest.mark.parametrize("isa", _cpu.available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "inner"), [(32, 32), (1, 1), (70, 37), (64, 40), (33, 2)])
def test_storage_is_panels_of_32_columns(isa: str, dtype: torch.dtype, rows: int, inner: int) -> None:
    ops, weight = native_ops(isa, 1), torch.randn(rows, inner).to(dtype)
    depth = 1 if dtype == torch.float32 else 2
    padded = torch.zeros(-(-rows // 32) * 32, -(-inner // depth) * depth, dtype=dtype)
    padded[:rows, :inner] = weight
    expected = padded.view(-1, 32, padded.shape[1] // depth, depth).transpose(1, 2)
    shape = ops.matrix_shape(rows, inner, dtype)
    assert torch.equal(pack(ops, weight).data, expected.reshape(shape))
    assert torch.equal(pack(ops, weight.T.contiguous().T).data, expected.reshape(shape))  # stored transposed


def test_pack_matrix_writes_its_own_rows_only() -> None:
    ops = native_ops(_cpu.best_isa(), 1)
    first, second = torch.randn(64, 10), torch.randn(40, 10)
    storage = torch.full(ops.matrix_shape(104, 10, torch.float32), float("nan"))
    ops.pack_matrix(second, storage, 64)
    assert storage[:2].isnan().all()
    ops.pack_matrix(first, storage, 0)
    assert torch.equal(storage, pack(ops, torch.cat([first, second])).data)


def test_wrong_arguments_of_linear_are_named() -> None:
    ops = native_ops(_cpu.best_isa(), 1)
    matrix = pack(ops, torch.randn(40, 10))
    x = torch.randn(3, 10)
    with pytest.raises(ValueError, match=r"linear: x must be \[T, K\] = \[T, 10\], found \[3, 9\]"):
        ops.linear(torch.randn(3, 9), matrix)
    with pytest.raises(ValueError, match=r"linear: x must be contiguous, found strides \[1, 3\]"):
        ops.linear(torch.randn(10, 3).T, matrix)
    with pytest.raises(TypeError, match=r"linear: x must be float32 or bfloat16, found torch\.float64"):
        ops.linear(x.double(), matrix)
    with pytest.raises(TypeError, match=r"linear: weight must be bfloat16, found torch\.float32"):
        ops.linear(x.bfloat16(), Matrix(torch.zeros(2, 5, 32, 2), 40, 10))
    with pytest.raises(ValueError, match=r"linear: weight must be \[3, 10, 32\], found \[2, 10, 32\]"):
        ops.linear(x, Matrix(matrix.data, 65, 10))
    with pytest.raises(ValueError, match="linear: weight must start at a multiple of 64 bytes, found it 4 bytes past"):
        ops.linear(x, Matrix(torch.zeros(641)[1:].view(2, 10, 32), 40, 10))
    with pytest.raises(ValueError, match=r"linear: bias must be \[N\] = \[40\], found \[41\]"):
        ops.linear(x, matrix, bias=torch.zeros(41))
    with pytest.raises(ValueError, match=r"linear: residual must be \[T, N\] = \[3, 40\], found \[4, 40\]"):
        ops.linear(x, matrix, residual=torch.zeros(4, 40))
    with pytest.raises(TypeError, match=r"linear: x must be a torch\.Tensor, found list"):
        _cpu.Kernels(ops.isa, 1).linear([1.0], matrix.data, 40, 10, None, None, 1.0, torch.empty(1, 40))  # type: ignore[arg-type]


def test_wrong_arguments_of_pack_matrix_are_named() -> None:
    ops = native_ops(_cpu.best_isa(), 1)
    storage = torch.empty(ops.matrix_shape(64, 10, torch.float32))
    with pytest.raises(ValueError, match="pack_matrix: first_row must be a multiple of 32, found 16"):
        ops.pack_matrix(torch.zeros(8, 10), storage, 16)
    with pytest.raises(
        ValueError, match="pack_matrix: source has 33 rows, which don't fit from first_row 32 into storage for 64"
    ):
        ops.pack_matrix(torch.zeros(33, 10), storage, 32)
    with pytest.raises(ValueError, match=r"pack_matrix: storage must be \[panels, 11, 32\] = "):
        ops.pack_matrix(torch.zeros(33, 11), storage)
    with pytest.raises(ValueError, match="pack_matrix: source must have contiguous rows or columns"):
        ops.pack_matrix(torch.zeros(64, 20)[:, ::2][::2], storage)
