"""Random pruning (arXiv 2202.02643): the pruned weights are drawn by a seed. The honest lower bound for every
criterion.

The draw of a linear depends only on the seed and its name, so it is the same in any order of the linears; on a ladder
each rung prunes a longer prefix of the same permutation, so that its masks are nested.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from pydantic import Field

from stages.options import Seed
from stages.prune.pruners import Linears, Needs, Pruned, zeroed
from stages.prune.spec import Prune

if TYPE_CHECKING:
    from torch import Tensor


class RandomOptions(Prune):
    seed: Seed = Field()
    """Seed of the draw, together with the name of each linear."""


def ranks(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Returns `rank_OI`, fp64: a permutation of 0 … O·I - 1; lower ranks are pruned first."""
    import torch

    drawn = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(drawn[:8], "little", signed=True))
    rows, columns = shape
    return torch.randperm(rows * columns, generator=generator).reshape(rows, columns).double()


class Random:
    needs: Needs = "nothing"
    options = RandomOptions

    def count(self, rows: int, columns: int, sparsity: float, config: RandomOptions) -> int:
        return round(rows * columns * sparsity)

    def prune(self, linears: Linears, config: RandomOptions) -> Pruned:
        from stages.prune.selection import without_lowest

        keeps = [
            without_lowest(ranks(name, tuple(W_OI.shape), config.seed).to(W_OI.device), goal, kept_OI, per_row=False)
            for name, W_OI, goal, kept_OI in zip(
                linears.names, linears.weights, linears.goals, linears.kept, strict=True
            )
        ]
        return zeroed(linears, keeps)


PRUNER = Random()
