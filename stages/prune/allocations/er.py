"""Erdős-Rényi ratios (arXiv 1707.04780, 2202.02643): a linear's density is proportional to (out + in) / (out · in).

Small and narrow linears stay denser. For linears, which have no kernel, ERK is the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from stages.contracts import UserError


def er(shapes: Mapping[str, tuple[int, int]], sparsity: float) -> dict[str, float]:
    """Linears whose density would exceed 1 stay dense, and the others share what is left. Raises UserError where one
    would have no weight left."""
    sizes = {name: rows * columns for name, (rows, columns) in shapes.items()}
    kept = (1 - sparsity) * sum(sizes.values())
    dense: set[str] = set()
    while True:
        others = [name for name in shapes if name not in dense]
        left = kept - sum(sizes[name] for name in dense)
        scale = left / sum(sum(shapes[name]) for name in others) if others else 0.0
        density = {name: scale * sum(shapes[name]) / sizes[name] for name in others}
        if not (over := {name for name, value in density.items() if value > 1}):
            break
        dense |= over
    found = {name: 0.0 if name in dense else 1 - density[name] for name in shapes}
    if empty := [name for name, value in found.items() if value >= 1]:
        raise UserError(f"leaves no weights in {empty[0]} at sparsity {sparsity:g}", "prune.allocation")
    return found


ALLOCATION = er
