"""Allocations: how sparse each linear becomes, so that all together reach the level. A file each.

A member defines `ALLOCATION`, a function of the linears' shapes and the level; plain Python, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from stages.kinds import Kinds


class Allocation(Protocol):
    def __call__(self, shapes: Mapping[str, tuple[int, int]], sparsity: float) -> Mapping[str, float]:
        """Sparsity in [0, 1) of each linear of these shapes (out, in), whose mean over all weights is `sparsity`."""


ALLOCATIONS: Kinds[Allocation] = Kinds("allocation", __name__, "ALLOCATION", "prune.allocation")
