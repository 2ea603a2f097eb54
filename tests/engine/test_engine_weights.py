"""Packed weights: what is packed comes back, and how it lies in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import EngineError
from engine.weights import DTYPES, DType, PackedWeight
from stages.quantize import quantized
from tests.tiny_engine import FUZZ, sparse_matrix


@FUZZ
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 70),
    sparsity=st.sampled_from([0.0, 0.3, 0.7, 0.95, 1.0]),
    dtype=st.sampled_from(sorted(DTYPES)),
    keep_dense=st.booleans(),
)
def test_what_is_packed_comes_back(rows: int, columns: int, sparsity: float, dtype: DType, keep_dense: bool) -> None:
    W_OI = sparse_matrix(rows, columns, sparsity, seed=rows * columns)
    W_OI[rows // 2] = 0
    packed = PackedWeight.of(W_OI, dtype, keep_dense=keep_dense)
    packed.check("w")
    expected_OI = W_OI.to(DTYPES[dtype]).float()
    if dtype == "int8":
        scale_O = np.maximum(W_OI.abs().numpy().max(1) / np.float32(127), 0)
        scale_O[scale_O == 0] = 1
        expected_OI = torch.from_numpy(np.rint(W_OI.numpy() / scale_O[:, None]) * scale_O[:, None])
    assert torch.equal(packed.dense(), expected_OI)
    assert packed.dtype == dtype
    assert packed.nnz == int((expected_OI != 0).sum())
    assert packed.sparsity == pytest.approx(1 - packed.nnz / W_OI.numel())
    assert packed.bitmask is None or not keep_dense
    dense = PackedWeight.of(W_OI, dtype, keep_dense=True)
    assert packed.nbytes <= dense.nbytes, "the bitmask form is chosen only where it is smaller"


def test_sparse_matrices_get_a_bitmask_and_dense_ones_do_not() -> None:
    for dtype, most_dense in (("fp32", 0.05), ("bf16", 0.1), ("int8", 0.2)):
        assert PackedWeight.of(sparse_matrix(256, 1024, most_dense), dtype).bitmask is not None  # type: ignore[arg-type]
        assert PackedWeight.of(sparse_matrix(256, 1024, 0.0), dtype).bitmask is None  # type: ignore[arg-type]


def test_the_layout_is_a_bit_for_each_column_lowest_first_and_values_row_by_row() -> None:
    W_OI = torch.zeros(4, 10)
    W_OI[0, 0], W_OI[0, 9], W_OI[2, 3], W_OI[2, 4], W_OI[3, 8] = 1.0, 2.0, 3.0, 4.0, 5.0
    packed = PackedWeight.of(W_OI, "fp32")
    assert packed.bitmask is not None
    assert packed.row_offsets is not None
    assert packed.bitmask.tolist() == [[0b1, 0b10], [0, 0], [0b11000, 0], [0, 0b1]]
    assert packed.values.tolist() == [1, 2, 3, 4, 5]
    assert packed.row_offsets.tolist() == [0, 2, 2, 4]
    assert (packed.bitmask.dtype, packed.row_offsets.dtype) == (torch.uint8, torch.int64)


def test_int8_rounds_as_the_pipeline_quantizes() -> None:
    W_OI = sparse_matrix(9, 40, 0.5)
    W_OI[3], W_OI[4] = 0, 1e-41
    q_OI, scale_O = quantized.quantize_weight(W_OI)
    packed = PackedWeight.of(W_OI, "int8")
    assert packed.scale is not None
    assert torch.equal(packed.scale, scale_O)
    assert torch.equal(packed.dense(), q_OI.float() * scale_O[:, None])
    again = PackedWeight.of_int8(q_OI, scale_O)
    assert torch.equal(again.values, packed.values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(dtype: DType, value: float) -> None:
    with pytest.raises(EngineError, match="not finite"):
        PackedWeight.of(torch.tensor([[1.0, value]]), dtype)
