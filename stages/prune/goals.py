"""Computes how many weights of each linear are pruned: by an N:M pattern, or the share that an allocation gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from stages.prune.allocations import ALLOCATIONS, Prunable
from stages.prune.inputs import input_norms
from stages.prune.ratios import shares_by_shape
from stages.prune.selection import Target, shape_of, target
from stages.prune.spec import Prune
from stages.prune.walk import Walk


def goals(
    blocks: Mapping[str, dict[str, nn.Linear]], config: Prune, sparsity: float, walk: Callable[[], Walk]
) -> dict[str, Target]:
    """Returns the target of each linear, which together reach `sparsity`.

    `blocks`: by name of the block, its linears by name. `walk` starts a walk over the calibration samples; it is called
    if the allocation reads norms. Raises UserError.
    """
    if config.pattern != "unstructured":
        return {name: target(config.pattern, sparsity) for linears in blocks.values() for name in linears}
    allocation = ALLOCATIONS.get(config.allocation.method)
    norms = input_norms(list(blocks.values()), walk()) if allocation.reads == "norms" else {}
    linears = {
        name: Prunable(
            shape_of(linear),
            block,
            linear.weight.detach() if allocation.reads != "shapes" else None,
            norms.get(name),
        )
        for block, inside in blocks.items()
        for name, linear in inside.items()
    }
    return dict(allocation.share(linears, sparsity, config.allocation))


def known_goals(config: Prune, shapes: Mapping[str, tuple[int, int]], sparsity: float) -> dict[str, Target] | None:
    """Returns the targets of linears of these shapes (out, in) without the model; None if the allocation has to read
    it."""
    if not sparsity:
        return dict.fromkeys(shapes, 0.0)
    if config.pattern != "unstructured":
        return dict.fromkeys(shapes, target(config.pattern, sparsity))
    shares = shares_by_shape(config, shapes, sparsity)
    return None if shares is None else {**shares}
