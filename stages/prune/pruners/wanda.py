"""Wanda (arXiv 2306.11695): prunes the smallest |W_ij| · ‖X_j‖₂ of each output row, or of each M along it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.prune.pruners import Linears, Needs, Pruned, zeroed
from stages.prune.spec import HessianOptions

if TYPE_CHECKING:
    from torch import Tensor

    from stages.prune.selection import Target


def wanda(W_OI: Tensor, norm_I: Tensor, goal: Target, kept_OI: Tensor | None) -> Tensor:
    """Returns `keep_OI`. `norm_I` is the norm of each input over the calibration tokens, at any common scale."""
    from stages.prune.selection import without_lowest

    return without_lowest(W_OI.float().abs() * norm_I, goal, kept_OI, per_row=True)


class Wanda:
    needs: Needs = "norms"
    options = HessianOptions

    def count(self, rows: int, columns: int, sparsity: float, config: HessianOptions) -> int:
        return rows * round(columns * sparsity)

    def prune(self, linears: Linears, config: HessianOptions) -> Pruned:
        given = zip(linears.weights, linears.goals, linears.kept, strict=True)
        keeps = [wanda(W_OI, linears.input_norms, goal, kept_OI) for W_OI, goal, kept_OI in given]
        return zeroed(linears, keeps)


PRUNER = Wanda()
