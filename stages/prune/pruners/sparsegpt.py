"""SparseGPT (arXiv 2301.00774): one-shot pruning with error compensation. Its mathematics: `stages.prune.sparsegpt`."""

from __future__ import annotations

from stages.prune.pruners import Linears, Needs, Pruned
from stages.prune.spec import HessianOptions


class SparseGPT:
    needs: Needs = "gram"
    options = HessianOptions

    def count(self, rows: int, columns: int, sparsity: float, config: HessianOptions) -> int:
        """Rounds in each block of columns."""
        width = config.block_size
        return sum(round(rows * min(width, columns - at) * sparsity) for at in range(0, columns, width))

    def prune(self, linears: Linears, config: HessianOptions) -> Pruned:
        from stages.prune import sparsegpt

        assert linears.H_II is not None
        shared = sparsegpt.factor(linears.H_II, config.damping, config.max_damping)
        weights, keeps = list(linears.weights), list(linears.weights)
        for goal in dict.fromkeys(linears.goals):
            chosen = [index for index, it in enumerate(linears.goals) if it == goal]
            found = sparsegpt.prune(
                [weights[index] for index in chosen], shared, goal, config.block_size,
                [linears.kept[index] for index in chosen],
            )  # fmt: skip
            for index, W_OI, keep_OI in zip(chosen, *found, strict=True):
                weights[index], keeps[index] = W_OI, keep_OI
        return Pruned(weights, keeps, shared.damping)


PRUNER = SparseGPT()
