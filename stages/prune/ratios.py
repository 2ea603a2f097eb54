"""Computes sparsities of blocks that together reach a level. Plain Python."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from stages.prune.allocations import ALLOCATIONS, Prunable

if TYPE_CHECKING:
    from stages.prune.spec import Prune

MOST = 0.99
"""No block becomes sparser than this, or than the level if that is higher: an empty block passes nothing on."""


def sizes_of_blocks(sizes: Mapping[str, tuple[str, int]]) -> dict[str, int]:
    """Returns the number of weights of each block, in order; `sizes`: linear -> (its block, its weights)."""
    found: dict[str, int] = {}
    for block, size in sizes.values():
        found[block] = found.get(block, 0) + size
    return found


def with_mean(wanted: Mapping[str, float], sizes: Mapping[str, int], sparsity: float) -> dict[str, float]:
    """Returns the `wanted` sparsities of blocks, shifted by one number and clipped to [0, MOST] so that their mean over
    all weights is `sparsity`. The shift is found by bisection, to the precision of a float."""
    most = max(MOST, sparsity)
    total = sum(sizes.values())

    def shifted(by: float) -> dict[str, float]:
        return {block: min(max(value + by, 0.0), most) for block, value in wanted.items()}

    def mean(found: Mapping[str, float]) -> float:
        return sum(sizes[block] * value for block, value in found.items()) / total

    low, high = -max(wanted.values()), most - min(wanted.values())
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if mean(shifted(middle)) < sparsity else (low, middle)
    return shifted((low + high) / 2)


def shares_by_shape(prune: Prune, shapes: Mapping[str, tuple[int, int]], sparsity: float) -> dict[str, float] | None:
    """Returns the shares that the allocation gives linears of these shapes (out, in); None if it has to read weights or
    inputs, and for N:M. Raises UserError if it cannot reach the level."""
    allocation = ALLOCATIONS.get(prune.allocation.method)
    if prune.pattern != "unstructured" or allocation.reads != "shapes":
        return None
    linears = {name: Prunable(shape, block_of(name)) for name, shape in shapes.items()}
    return dict(allocation.share(linears, sparsity, prune.allocation))


def block_of(linear: str) -> str:
    """Returns the block of a linear: `model.layers.3.mlp.up_proj` -> `model.layers.3`."""
    found = re.match(r"(.*?\.\d+)\.", linear)
    return found[1] if found else linear
