"""Limits of memory and arithmetic: pure functions of sizes, sparsity and seconds."""

from __future__ import annotations

from engine.weights import DType

VALUE_BYTES: dict[DType, int] = {"fp32": 4, "bf16": 2, "int8": 1}


def dense_bytes(rows: int, columns: int, dtype: DType) -> int:
    return rows * columns * VALUE_BYTES[dtype]


def bitmask_bytes(rows: int, columns: int, sparsity: float, dtype: DType) -> float:
    """Returns the bytes of a bit for each weight and of the non-zeros; without offsets and scales, a few bytes a
    row."""
    return rows * columns * (1 / 8 + (1 - sparsity) * VALUE_BYTES[dtype])


def storage_ratio(rows: int, columns: int, stored_bytes: float) -> float:
    """Returns the speed over dense fp32 if both only read their weights."""
    return dense_bytes(rows, columns, "fp32") / stored_bytes


def flop_ratio(sparsity: float) -> float:
    """Returns the speed over a dense product of the same arithmetic if zeros take no time; sparsity below 1."""
    return 1 / (1 - sparsity)


def gigabytes_per_second(stored_bytes: float, seconds: float) -> float:
    return stored_bytes / seconds / 1e9


def gigaflops(tokens: int, rows: int, columns: int, seconds: float) -> float:
    """Returns GFLOP/s of the dense product, counting its multiplications and additions as done, with zeros too."""
    return 2 * tokens * rows * columns / seconds / 1e9
