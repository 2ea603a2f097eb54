"""SparseSwaps (arXiv 2512.10922): a kept and a pruned weight of a row are swapped while that lowers the layer's error
of masking alone. Weights start again from the dense ones; `iterations` of conjugate gradients may follow. Its
mathematics: `stages.prune.mask_swaps`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from stages.prune.pruners import Linears, Needs, Pruned
from stages.prune.spec import Reconstruction

if TYPE_CHECKING:
    from torch import Tensor


class SwapOptions(Reconstruction):
    swaps: int = Field(ge=1)
    """The most swaps of each row."""
    candidates: int = Field(ge=0)
    """Pairs are tried among this many kept and this many pruned weights of each row, those whose own terms are best. 0:
    all pairs, which is slow."""
    iterations: int = Field(ge=0)
    """Steps of conjugate gradients afterwards; 0 leaves the dense weights, masked."""
    damping: float = Field(gt=0)
    """Added to the Hessian's diagonal for these steps, relative to its mean."""


class Swaps:
    needs: Needs = "gram"
    options = SwapOptions

    def refine(self, dense: Sequence[Tensor], linears: Linears, found: Pruned, config: SwapOptions) -> Pruned:
        from stages.prune import layerwise, mask_swaps

        assert linears.H_II is not None
        H_II = linears.H_II.triu(1)
        H_II = H_II + H_II.T + linears.H_II.diagonal().diag()
        keeps = [
            mask_swaps.refine(W_OI.float(), keep_OI, H_II, goal, kept_OI, config.swaps, config.candidates)
            for W_OI, keep_OI, goal, kept_OI in zip(dense, found.keeps, linears.goals, linears.kept, strict=True)
        ]
        masked = [W_OI.float().masked_fill(~keep_OI, 0) for W_OI, keep_OI in zip(dense, keeps, strict=True)]
        if not config.iterations:
            return Pruned(masked, keeps)
        shared = layerwise.problem(linears.H_II, config.damping)
        return Pruned(layerwise.solved(dense, masked, keeps, shared, config.iterations), keeps)


RECONSTRUCTION = Swaps()
