"""Stage `prune`: one rung of sparsity. What the rest of the house knows of it; torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from stages.contracts import Checkpoint
from stages.options import Options, Precision, Sparsity, regular_expressions
from stages.stage import Stage


class Prune(Options):
    method: Literal["magnitude", "wanda", "sparsegpt"]
    pattern: str
    """`unstructured`, or `N:M`: N weights KEPT of each M along the input (2:4, 4:8, 16:32, 16:64, ...)."""
    block_size: int = Field(ge=1)
    """Columns that SparseGPT prunes together, and over which unstructured sparsity is uniform."""
    damping: float = Field(gt=0)
    """Of the Hessian's diagonal, relative to its mean."""
    max_damping: float = Field(gt=0)
    """A Hessian that is not positive definite gets 10 times the damping, noted in the record, up to this; then stop."""
    precision: Precision
    """Of the calibration forward passes. Hessians and weights are fp32 always."""
    micro_batch_size: int = Field(ge=1)
    """Calibration samples of one forward pass."""
    skip: list[str]
    """Regular expressions of linears to leave dense (full match on the dotted name)."""

    @field_validator("skip")
    @classmethod
    def _readable(cls, value: list[str]) -> list[str]:
        return regular_expressions(value)

    @field_validator("pattern")
    @classmethod
    def _known(cls, value: str) -> str:
        if value != "unstructured":
            keep, group = parse_pattern(value)
            if not 0 < keep < group:
                raise ValueError("expected N:M with 0 < N < M, which keeps N of each M weights")
        return value


class PruneOptions(Options):
    prune: Prune
    sparsity: Sparsity


def parse_pattern(pattern: str) -> tuple[int, int]:
    """`"2:4"` -> (2, 4): keep 2 of each 4. Raises ValueError on anything else."""
    keep, colon, group = pattern.partition(":")
    if not (colon and keep.isdigit() and group.isdigit()):
        raise ValueError(f"expected `unstructured` or N:M (keep N of M), got {pattern!r}")
    return int(keep), int(group)


STAGE = Stage("prune", "2", PruneOptions, Checkpoint)
