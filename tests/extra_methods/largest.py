"""A pruner: the largest weights go."""

from __future__ import annotations

from typing import Literal

from stages.prune.pruners import Linears, Pruned
from stages.prune.spec import Prune


class Largest:
    needs: Literal["nothing"] = "nothing"
    options = Prune

    def count(self, rows: int, columns: int, sparsity: float, config: Prune) -> int:
        return round(rows * columns * sparsity)

    def prune(self, linears: Linears, config: Prune) -> Pruned:
        from stages.prune.pruners import zeroed
        from stages.prune.selection import without_lowest

        keeps = [
            without_lowest(W_OI.abs().max() - W_OI.abs(), goal, kept_OI, per_row=False)
            for W_OI, goal, kept_OI in zip(linears.weights, linears.goals, linears.kept, strict=True)
        ]
        return zeroed(linears, keeps)


PRUNER = Largest()
