"""RIA (Plug-and-Play, ICLR 2024): weights relative to their row and their column, times a power of their inputs' norms.

It never empties a row or column of a linear, as magnitude and Wanda may. The lowest scores of the whole linear, or
(N:M) of each M along the input, are pruned; with `per_row` the lowest of each row, as in Wanda.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from stages.prune.pruners import Linears, Needs, Pruned, zeroed
from stages.prune.spec import Prune

if TYPE_CHECKING:
    from torch import Tensor


class RiaOptions(Prune):
    power: float = Field(ge=0)
    """Power to which the inputs' norms are taken; 0.5 in the paper, 0 leaves them out."""
    per_row: bool
    """Whether each row loses the same number of weights, as with Wanda; else the linear as a whole has one
    threshold."""


def relative_importance(W_OI: Tensor, norm_I: Tensor, power: float) -> Tensor:
    """Returns `(|W_ij| / Σ_i |W_ij| + |W_ij| / Σ_j |W_ij|) · norm_j ^ power`, fp32; 0 in rows and columns that are
    0."""
    size_OI = W_OI.float().abs()
    of_column_OI = size_OI / size_OI.sum(0, keepdim=True).clamp_min(1e-38)
    of_row_OI = size_OI / size_OI.sum(1, keepdim=True).clamp_min(1e-38)
    return (of_column_OI + of_row_OI) * norm_I**power


class Ria:
    needs: Needs = "norms"
    options = RiaOptions

    def count(self, rows: int, columns: int, sparsity: float, config: RiaOptions) -> int:
        return rows * round(columns * sparsity) if config.per_row else round(rows * columns * sparsity)

    def prune(self, linears: Linears, config: RiaOptions) -> Pruned:
        from stages.prune.selection import without_lowest

        keeps = [
            without_lowest(
                relative_importance(W_OI, linears.input_norms, config.power), goal, kept_OI, per_row=config.per_row
            )
            for W_OI, goal, kept_OI in zip(linears.weights, linears.goals, linears.kept, strict=True)
        ]
        return zeroed(linears, keeps)


PRUNER = Ria()
