"""AlphaPruning (arXiv 2410.10912): blocks whose weights' spectra have heavier tails, which have learned more, stay
denser. Reads no data.

The exponent of a tail is Hill's estimate over the upper half of the squared singular values (the paper's `xmin_mid`).
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


class AlphaOptions(Allocation):
    spread: float = Field(ge=0, lt=1)
    """How far a block's sparsity may be from the level, as a share of it (ε of the paper: 0.3 for Wanda, 0.2 for
    SparseGPT, 0.5 for magnitude)."""


def hill(values_N: Tensor) -> float:
    """Returns the exponent of the tail of positive `values_N`, ascending: `1 + k / Σ ln(λ_i / λ_i0)` from the middle
    on."""
    tail_K = values_N[len(values_N) // 2 :]
    return 1 + len(tail_K) / float((tail_K / tail_K[0]).log().sum())


def tail_exponent(W_OI: Tensor) -> float:
    """Returns the exponent of the squared singular values, in fp64; those that are 0 by rounding are left out."""
    import torch

    W = W_OI.double()
    values_N = torch.linalg.eigvalsh(W @ W.T if len(W) <= W.shape[1] else W.T @ W)
    rounding = values_N[-1] * len(values_N) * torch.finfo(torch.float64).eps
    return hill(values_N[values_N > rounding])


class Alpha:
    reads: Reads = "weights"
    options = AlphaOptions

    def share(self, linears: Mapping[str, Prunable], sparsity: float, config: AlphaOptions) -> Mapping[str, float]:
        sizes = sizes_of_blocks({name: (linear.block, linear.size) for name, linear in linears.items()})
        exponents: dict[str, list[float]] = {block: [] for block in sizes}
        for linear in linears.values():
            assert linear.W_OI is not None
            exponents[linear.block].append(tail_exponent(linear.W_OI))
        means = {block: sum(found) / len(found) for block, found in exponents.items()}
        low, high = min(means.values()), max(means.values())
        width = high - low
        relative = {
            block: 1 + config.spread * (2 * (mean - low) / width - 1) if width else 1.0 for block, mean in means.items()
        }
        scale = sparsity * sum(sizes.values()) / sum(sizes[block] * relative[block] for block in sizes)
        found = with_mean({block: scale * value for block, value in relative.items()}, sizes, sparsity)
        return {name: found[linear.block] for name, linear in linears.items()}


ALLOCATION = Alpha()
