"""Finds the masks of a model that comes sparse: published checkpoints store pruned weights as zeros, and nothing
else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from stages import masks
from stages.contracts import UserError
from stages.masks import Masks

OPTION = "model.masks"
SPARSE_SHARE = 0.05
"""auto: a linear with a larger share of zeros was pruned. Trained weights are practically never 0 (SmolLM2 from 4-bit
weights: 0.07 % at most). A linear that is all zeros was pruned entirely if others are sparse, else it was never
trained."""


@dataclass(frozen=True)
class Zeros:
    """The zeros of a model's prunable linears, and their masks."""

    share: float
    """Share of exact zeros among the weights of all prunable linears."""
    pruned: Masks
    note: str
    """For the reader; empty where there is nothing to say."""


@torch.no_grad()
def find(linears: Mapping[str, nn.Linear], choice: str) -> Zeros:
    """Returns masks by the option `model.masks` (`auto`, `from_zeros`, `none`). Raises UserError for from_zeros without
    any."""
    found = {name: linear.weight != 0 for name, linear in linears.items()}
    share = masks.sparsity(found)
    shares = {name: masks.sparsity({name: keep}) for name, keep in found.items()}
    empty = [name for name, zeros in shares.items() if zeros == 1]
    is_sparse = {name: zeros > SPARSE_SHARE for name, zeros in shares.items()}
    summary = f"{share:.1%} of the prunable weights are zero"
    if choice == "from_zeros":
        if not share:
            raise UserError("none of the prunable weights is zero; expected auto or none", OPTION)
        return Zeros(share, found, f"{summary}: {_KEPT}")
    if sum(is_sparse.values()) == len(empty):
        untrained = f"{len(empty)} linears are all zeros, first {empty[0]}: training fills them" if empty else ""
        return Zeros(share, {}, f"{untrained} (model.masks=from_zeros does not)" if untrained else "")
    if choice == "none":
        return Zeros(share, {}, f"{summary}: training will revive them (model.masks=none)")
    assert choice == "auto", choice
    pruned = {name: keep if is_sparse[name] else torch.ones_like(keep) for name, keep in found.items()}
    partly = "" if all(is_sparse.values()) else f" ({sum(is_sparse.values())} of {len(linears)} linears are sparse)"
    return Zeros(share, pruned, f"{summary}{partly}: {_KEPT}")


_KEPT = (
    "masks keep them from here on (model.masks=none does not). The model trained before pruning, the teacher and the "
    "baseline are that sparse, though they are called dense"
)
