"""OWL (arXiv 2310.05175): blocks with more outliers among |weight| · norm of its input stay denser.

The mean over blocks is weighted by their sizes, and ratios that leave [0, 1] are clipped and compensated by the others,
which the published code does not do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from stages.prune.allocations import Prunable, Reads
from stages.prune.ratios import sizes_of_blocks, with_mean
from stages.prune.spec import Allocation

if TYPE_CHECKING:
    from torch import Tensor


class OwlOptions(Allocation):
    outlier: float = Field(gt=0)
    """How many times the block's mean a weight's score is, to be an outlier; 5 in the paper."""
    spread: float = Field(ge=0, le=1)
    """How far a block's sparsity may be from the level (λ of the paper, 0.08)."""


def outlier_share(scores: list[Tensor], outlier: float) -> float:
    """Returns the share of the scores of a block's linears, pooled, that exceed `outlier` times their mean."""
    count = sum(score_OI.numel() for score_OI in scores)
    limit = outlier * sum(float(score_OI.sum(dtype=score_OI.dtype)) for score_OI in scores) / count
    return sum(int((score_OI > limit).sum()) for score_OI in scores) / count


class Owl:
    reads: Reads = "norms"
    options = OwlOptions

    def share(self, linears: Mapping[str, Prunable], sparsity: float, config: OwlOptions) -> Mapping[str, float]:
        sizes = sizes_of_blocks({name: (linear.block, linear.size) for name, linear in linears.items()})
        shares = {}
        for block in sizes:
            scores = []
            for linear in linears.values():
                if linear.block == block:
                    assert linear.W_OI is not None
                    assert linear.norm_I is not None
                    scores.append(linear.W_OI.float().abs() * linear.norm_I)
            shares[block] = outlier_share(scores, config.outlier)
        low, high = min(shares.values()), max(shares.values())
        scale = 2 * config.spread / (high - low) if high > low else 0.0
        wanted = {block: sparsity - scale * (share - low) for block, share in shares.items()}
        found = with_mean(wanted, sizes, sparsity)
        return {name: found[linear.block] for name, linear in linears.items()}


ALLOCATION = Owl()
