"""Every kernel against fp64: all dtypes, instruction sets, odd shapes, sparsities and token counts.

Stated tolerances, relative to the largest output: 1e-5, for sums of up to 1536 products in fp32 in another order (int8
sums are exact integers; what is left is their scaling).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine import kernels, sources
from engine.errors import EngineError
from engine.kernels import Matrix
from engine.weights import DTYPES, DType, PackedWeight
from tests.tiny_engine import needs_kernels

pytestmark = needs_kernels

TOLERANCE = 1e-5
SHAPES = [(1, 1), (3, 5), (16, 64), (17, 63), (33, 65), (15, 130), (70, 257), (48, 1536)]
TOKENS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33, 65, 129, 513]
SPARSITIES = [0.0, 0.5, 0.9, 1.0]


def weights(rows: int, columns: int, sparsity: float, seed: int = 0) -> Tensor:
    """Random, with an empty and a full row where there are three."""
    draw = torch.Generator().manual_seed(seed)
    W_OI = torch.randn(rows, columns, generator=draw)
    W_OI[torch.rand(rows, columns, generator=draw) < sparsity] = 0
    if rows > 2 and 0 < sparsity < 1:
        W_OI[1] = 0
        W_OI[2] = torch.randn(columns, generator=draw) + 3
    return W_OI


def rounded(x_TI: Tensor, dtype: DType) -> Tensor:
    """Inputs as the kernels of a dtype see them, in fp64."""
    if dtype == "bf16":
        return x_TI.bfloat16().double()
    if dtype == "int8":
        scale_T1 = (x_TI.abs().amax(1, keepdim=True) / 127.5).clamp_min(torch.finfo(torch.float32).tiny)
        return (x_TI / scale_T1).round().clamp(-128, 127).double() * scale_T1.double()
    return x_TI.double()


def assert_right(y_TO: Tensor, packed: PackedWeight, x_TI: Tensor, bias_O: Tensor | None = None) -> None:
    W_OI = packed.dense().double()
    if packed.scale is not None:  # dequantized in fp32: exact in fp64 is what the integers stand for
        W_OI = (packed.dense() / packed.scale[:, None]).round().double() * packed.scale.double()[:, None]
    expected_TO = rounded(x_TI, packed.dtype) @ W_OI.t()
    if bias_O is not None:
        expected_TO += bias_O.double()
    error = float((y_TO.double() - expected_TO).abs().max())
    assert error <= TOLERANCE * max(1e-30, float(expected_TO.abs().max())), error


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_equal_fp64_for_every_shape_and_number_of_tokens(dtype: DType, isa: str) -> None:
    for number, (rows, columns) in enumerate(SHAPES):
        for sparsity in SPARSITIES:
            packed = PackedWeight.of(weights(rows, columns, sparsity, number), dtype)
            matrix = Matrix(packed)
            for tokens in TOKENS if rows * columns < 20_000 else (1, 8, 9, 40):
                x_TI = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(tokens))
                assert_right(matrix.linear(x_TI, isa=isa), packed, x_TI)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_that_are_kept_change_nothing(dtype: DType, isa: str) -> None:
    W_OI = weights(37, 100, 0.7)
    packed, dense = PackedWeight.of(W_OI, dtype), PackedWeight.of(W_OI, dtype, keep_dense=True)
    assert (packed.bitmask is None, dense.bitmask is None) == (False, True)
    for tokens in (1, 5, 40):
        x_TI = torch.randn(tokens, 100)
        assert_right(Matrix(dense).linear(x_TI, isa=isa), packed, x_TI)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_products_of_drawn_shapes_equal_fp64(data: st.DataObject) -> None:
    draw = data.draw
    dtype = draw(st.sampled_from(list(DTYPES)))
    rows, columns = draw(st.integers(1, 80)), draw(st.integers(1, 300))
    W_OI = weights(rows, columns, draw(st.floats(0, 1)), draw(st.integers(0, 9)))
    packed = PackedWeight.of(W_OI, dtype, keep_dense=draw(st.booleans()))
    bias_O = torch.randn(rows) if draw(st.booleans()) else None
    x_TI = torch.randn(draw(st.integers(1, 150)), columns)
    isa, threads = draw(st.sampled_from(kernels.available_isas())), draw(st.integers(1, 3))
    assert_right(Matrix(packed, bias_O).linear(x_TI, threads, isa), packed, x_TI, bias_O)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 200])
def test_two_threads_give_what_one_gives(dtype: DType, tokens: int, isa: str) -> None:
    matrix = Matrix(PackedWeight.of(weights(75, 300, 0.6), dtype), torch.randn(75))
    x_TI = torch.randn(tokens, 300)
    one = matrix.linear(x_TI, 1, isa)
    for threads in (2, 3):
        # rows are computed by one thread each, so even the order of sums is the same
        assert torch.equal(matrix.linear(x_TI, threads, isa), one)


def test_int8_is_the_simulated_int8(isa: str) -> None:
    from stages.quantize.quantized import Int8Linear

    linear = torch.nn.Linear(333, 50)
    linear.weight.data[torch.rand(50, 333) < 0.6] = 0
    simulated = Int8Linear.of(linear)
    assert isinstance(linear.bias, Tensor)
    matrix = Matrix(PackedWeight.of_int8(simulated.weight.data, simulated.weight_scale), linear.bias.detach())
    for tokens in (1, 3, 20):
        x_TI = torch.randn(tokens, 333) * 5
        with torch.no_grad():
            torch.testing.assert_close(matrix.linear(x_TI, isa=isa), simulated(x_TI), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_in_the_input_is_seen_in_the_output(dtype: DType, bad: float, isa: str) -> None:
    matrix = Matrix(PackedWeight.of(torch.ones(20, 70), dtype))
    for tokens in (2, 12):
        x_TI = torch.ones(tokens, 70)
        x_TI[1, 3] = bad
        y_TO = matrix.linear(x_TI, isa=isa)
        assert not torch.isfinite(y_TO[1]).any()
        assert torch.isfinite(y_TO[0]).all()


def test_tokens_of_zeros_give_the_bias(isa: str) -> None:
    bias_O = torch.randn(18)
    for dtype in DTYPES:
        y_TO = Matrix(PackedWeight.of(weights(18, 40, 0.5), dtype), bias_O).linear(torch.zeros(2, 40), isa=isa)
        torch.testing.assert_close(y_TO, bias_O.expand(2, 18))


def test_no_tokens_give_no_outputs() -> None:
    assert Matrix(PackedWeight.of(torch.ones(3, 4), "fp32")).linear(torch.empty(0, 4)).shape == (0, 3)


@pytest.mark.parametrize("x", [torch.ones(2, 5), torch.ones(2, 4).double(), torch.ones(2, 4, device="meta")])
def test_inputs_of_another_width_dtype_or_device_are_refused(x: Tensor) -> None:
    with pytest.raises(EngineError, match="expected float32"):
        Matrix(PackedWeight.of(torch.ones(3, 4), "fp32")).linear(x)


def test_a_matrix_keeps_no_more_than_it_reads() -> None:
    """Bytes of the storage roofline: a bit a weight, and the non-zeros."""
    W_OI = weights(256, 512, 0.5)
    nnz = int((W_OI != 0).sum())
    for dtype, size in (("fp32", 4), ("bf16", 2), ("int8", 1)):
        dtype_: Any = dtype
        packed = PackedWeight.of(W_OI, dtype_)
        count = nnz if dtype != "int8" else packed.nnz
        small = 8 * (256 + 1) + 8 * 256  # offsets; scales and sums
        assert 0 <= Matrix(packed).bytes - (count * size + 256 * 512 / 8) <= small


def test_a_library_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels._library.cache_clear()
    monkeypatch.setattr(sources, "digest", lambda: "0123456789abcdef")
    try:
        assert "other sources" in str(kernels.unavailable())
    finally:
        kernels._library.cache_clear()


def test_without_a_library_the_reason_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels._library.cache_clear()
    monkeypatch.setattr(sources, "library", lambda: None)
    try:
        assert "install a C++ compiler" in str(kernels.unavailable())
    finally:
        kernels._library.cache_clear()
