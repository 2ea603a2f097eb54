"""ALPS (arXiv 2406.07831): ADMM finds the mask of each linear, conjugate gradients the weights under it. Slower than
SparseGPT, better at high sparsity. Its mathematics: `stages.prune.layerwise`.

The search may end at a mask that is worse than its start, the largest weights times their inputs' norms (for
independent inputs, that start is the best). Each linear takes the one of the two with the smaller error.
"""

from __future__ import annotations

from pydantic import Field

from stages.prune.pruners import Linears, Needs, Pruned
from stages.prune.spec import Prune


class AlpsOptions(Prune):
    damping: float = Field(gt=0)
    """Added to the Hessian's diagonal, relative to its mean."""
    search_iterations: int = Field(ge=1)
    """The most iterations of the search for the mask, which ends earlier if the mask stays."""
    solve_iterations: int = Field(ge=0)
    """Iterations of conjugate gradients under the mask."""


class Alps:
    needs: Needs = "gram"
    options = AlpsOptions

    def count(self, rows: int, columns: int, sparsity: float, config: AlpsOptions) -> int:
        return round(rows * columns * sparsity)

    def prune(self, linears: Linears, config: AlpsOptions) -> Pruned:
        from stages.prune import layerwise
        from stages.prune.selection import without_lowest

        assert linears.H_II is not None
        shared = layerwise.problem(linears.H_II, config.damping)
        spectrum = layerwise.spectrum(shared.A_II)
        weights, keeps = [], []
        for W_OI, goal, kept_OI in zip(linears.weights, linears.goals, linears.kept, strict=True):
            V0_OI = W_OI.float() * shared.scale_I
            masks = (
                without_lowest(V0_OI.abs(), goal, kept_OI, per_row=False),
                layerwise.alps_mask(V0_OI, shared.A_II, spectrum, goal, kept_OI, config.search_iterations),
            )
            solved = [
                layerwise.conjugate_gradients(
                    V0_OI.masked_fill(~keep_OI, 0), V0_OI, keep_OI, shared.A_II, config.solve_iterations
                )
                for keep_OI in masks
            ]
            better = min((0, 1), key=[layerwise.distance(V_OI, V0_OI, shared.A_II) for V_OI in solved].__getitem__)
            weights.append(solved[better] / shared.scale_I)
            keeps.append(masks[better])
        return Pruned(weights, keeps)


PRUNER = Alps()
