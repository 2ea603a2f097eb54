"""What memory and arithmetic allow: pure functions of sizes, sparsity and seconds."""

from __future__ import annotations

from engine.weights import DType

VALUE_BYTES: dict[DType, int] = {"fp32": 4, "bf16": 2, "int8": 1}


def dense_bytes(rows: int, columns: int, dtype: DType) -> int:
    return rows * columns * VALUE_BYTES[dtype]


def bitmask_bytes(rows: int, columns: int, sparsity: float, dtype: DType) -> float:
    """Of a bit for each weight and the non-zeros; offsets and scales, a few bytes a row, are left out."""
    return rows * columns * (1 / 8 + (1 - sparsity) * VALUE_BYTES[dtype])


def storage_ratio(rows: int, columns: int, stored_bytes: float) -> float:
    """Speed over dense fp32, where both do nothing but read their weights."""
    return dense_bytes(rows, columns, "fp32") / stored_bytes


def flop_ratio(sparsity: float) -> float:
    """Speed over a dense product of the same arithmetic, where no time goes to zeros; sparsity below 1."""
    return 1 / (1 - sparsity)


def gigabytes_per_second(stored_bytes: float, seconds: float) -> float:
    return stored_bytes / seconds / 1e9


def gigaflops(tokens: int, rows: int, columns: int, seconds: float) -> float:
    """GFLOP/s of the dense product, whose multiplications and additions count as done, by zeros too."""
    return 2 * tokens * rows * columns / seconds / 1e9
