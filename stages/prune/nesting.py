"""Nested masks: what an earlier mask prunes stays pruned. Checks whether a level can be reached from there."""

from __future__ import annotations

from collections.abc import Mapping

from stages.contracts import UserError
from stages.masks import Masks
from stages.prune.selection import Target, num_pruned
from stages.prune.spec import Prune

TOLERANCE = 0.01
"""Share of the weights by which earlier zeros may exceed a level: those of published checkpoints are not exact."""


def check(
    shapes: Mapping[str, tuple[int, int]], goals: Mapping[str, Target], previous: Masks, config: Prune, sparsity: float
) -> str:
    """Returns a note on linears that hold more zeros than the level asks for, and so keep theirs; empty if none does.

    `shapes`: (out, in) of the linears to prune, `goals` their targets. Raises UserError, naming one, if the model's
    sparsity would exceed the level.
    """
    asked, comes_to = (
        {
            name: num_pruned(rows, columns, goals[name], config, earlier.get(name))
            for name, (rows, columns) in shapes.items()
        }
        for earlier in ({}, previous)
    )
    over = {name: comes_to[name] - asked[name] for name in shapes if comes_to[name] > asked[name]}
    if not over:
        return ""
    weights = sum(rows * columns for rows, columns in shapes.values())
    worst = max(over, key=lambda name: over[name] / previous[name].numel())
    found = int((~previous[worst]).sum())
    what = (
        f"{len(over)} of {len(shapes)} linears hold more zeros than {sparsity:g} leaves room for: {worst} has "
        f"{found} of {previous[worst].numel()}, {asked[worst]} are to be pruned"
    )
    if sum(over.values()) > TOLERANCE * weights:
        reached = sum(comes_to.values()) / weights
        raise UserError(
            f"{what}; zeros stay zeros, so the sparsity would come to {reached:.3f}; choose a higher sparsity, or a "
            "pattern that the zeros have, or start from a model without them (model.masks=none)",
            "sparsity",
        )
    return f"{what}; they keep theirs"
