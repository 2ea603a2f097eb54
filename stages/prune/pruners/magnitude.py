"""Magnitude pruning (arXiv 1506.02626): prunes the smallest |W| of the whole linear, or of each M along the input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.prune.pruners import Linears, Needs, Pruned, zeroed
from stages.prune.spec import HessianOptions

if TYPE_CHECKING:
    from torch import Tensor

    from stages.prune.selection import Target


def magnitude(W_OI: Tensor, goal: Target, kept_OI: Tensor | None) -> Tensor:
    """Returns `keep_OI`."""
    from stages.prune.selection import without_lowest

    return without_lowest(W_OI.float().abs(), goal, kept_OI, per_row=False)


class Magnitude:
    needs: Needs = "nothing"
    options = HessianOptions

    def count(self, rows: int, columns: int, sparsity: float, config: HessianOptions) -> int:
        return round(rows * columns * sparsity)

    def prune(self, linears: Linears, config: HessianOptions) -> Pruned:
        given = zip(linears.weights, linears.goals, linears.kept, strict=True)
        keeps = [magnitude(W_OI, goal, kept_OI) for W_OI, goal, kept_OI in given]
        return zeroed(linears, keeps)


PRUNER = Magnitude()
