"""Erdős-Rényi ratios (arXiv 1707.04780, 2202.02643): a linear's density is proportional to (out + in) / (out · in).

Small and narrow linears stay denser. For linears, which have no kernel, ERK is the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from stages.contracts import UserError
from stages.prune.allocations import Prunable, Reads
from stages.prune.spec import Allocation


class ErdosRenyi:
    reads: Reads = "shapes"
    options = Allocation

    def share(self, linears: Mapping[str, Prunable], sparsity: float, config: Allocation) -> Mapping[str, float]:
        """Keeps linears dense whose density would exceed 1, and lets the others share the rest. Raises UserError if a
        linear would have no weight left."""
        kept = (1 - sparsity) * sum(linear.size for linear in linears.values())
        dense: set[str] = set()
        while True:
            others = {name: linear for name, linear in linears.items() if name not in dense}
            left = kept - sum(linears[name].size for name in dense)
            scale = left / sum(sum(linear.shape) for linear in others.values()) if others else 0.0
            density = {name: scale * sum(linear.shape) / linear.size for name, linear in others.items()}
            if not (over := {name for name, value in density.items() if value > 1}):
                break
            dense |= over
        found = {name: 0.0 if name in dense else 1 - density[name] for name in linears}
        if empty := [name for name, value in found.items() if value >= 1]:
            raise UserError(f"leaves no weights in {empty[0]} at sparsity {sparsity:g}", "prune.allocation.method")
        return found


ALLOCATION = ErdosRenyi()
