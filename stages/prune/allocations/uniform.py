"""The same sparsity in every linear."""

from __future__ import annotations

from collections.abc import Mapping

from stages.prune.allocations import Prunable, Reads
from stages.prune.spec import Allocation


class Uniform:
    reads: Reads = "shapes"
    options = Allocation

    def share(self, linears: Mapping[str, Prunable], sparsity: float, config: Allocation) -> Mapping[str, float]:
        return dict.fromkeys(linears, sparsity)


ALLOCATION = Uniform()
