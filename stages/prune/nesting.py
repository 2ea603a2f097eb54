"""Masks only grow: what an earlier mask prunes stays pruned. Whether a level can be reached from there."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from stages.contracts import Log, UserError
from stages.masks import Masks
from stages.prune.selection import num_pruned, shape_of, targets
from stages.prune.spec import Prune

TOLERANCE = 0.01
"""Share of the weights by which earlier zeros may go beyond a level: those of published checkpoints are not exact."""


def check(linears: Mapping[str, nn.Linear], previous: Masks, config: Prune, sparsity: float, log: Log) -> None:
    """Tells `log` of linears that hold more zeros than the level asks for, and so keep theirs.

    Raises UserError, naming one, where the model's sparsity would come out above what was asked for.
    """
    goals = targets(config, {name: shape_of(linear) for name, linear in linears.items()}, sparsity)
    asked, comes_to = (
        {
            name: num_pruned(*shape_of(linear), goals[name], config, earlier.get(name))
            for name, linear in linears.items()
        }
        for earlier in ({}, previous)
    )
    over = {name: comes_to[name] - asked[name] for name in linears if comes_to[name] > asked[name]}
    if not over:
        return
    weights = sum(linear.weight.numel() for linear in linears.values())
    worst = max(over, key=lambda name: over[name] / linears[name].weight.numel())
    found = int((~previous[worst]).sum())
    what = (
        f"{len(over)} of {len(linears)} linears hold more zeros than {sparsity:g} leaves room for: {worst} has "
        f"{found} of {previous[worst].numel()}, {asked[worst]} are asked for"
    )
    if sum(over.values()) > TOLERANCE * weights:
        reached = sum(comes_to.values()) / weights
        raise UserError(
            f"{what}; zeros stay zeros, so the sparsity would come to {reached:.3f}; ask for more, or for a pattern "
            "that the zeros have, or start from a model without them (model.masks=none)",
            "sparsity",
        )
    log.note(f"{what}; they keep theirs")
