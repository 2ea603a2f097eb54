"""Checks the options of `prune` against the records of the model and the data. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.contracts import DataSet, Structure, UserError
from stages.prune.pattern import parse_pattern
from stages.prune.ratios import shares_by_shape
from stages.skipping import skipped

if TYPE_CHECKING:
    from stages.prune.spec import Prune, PruneOptions


SPARE = 0.01
"""Share of the weights by which the zeros of a published checkpoint may exceed a level."""


def check_early(options: PruneOptions, model: Structure, data: DataSet | None) -> None:
    """Raises UserError for options that cannot work with a model of this structure and these data."""
    if options.sparsity:
        check_pruner(options.prune, model)
        left_alone = skipped(options.prune.skip, model.linears, "prune.skip", model.left_alone)
        shapes = {name: shape for name, shape in model.linears.items() if name not in left_alone}
        shares_by_shape(options.prune, shapes, options.sparsity)
        check_start(options.sparsity, model.zeros, "sparsity")


def check_pruner(prune: Prune, model: Structure) -> None:
    """Raises UserError for skips that match nothing, and for an N:M that does not divide the inputs."""
    left_alone = skipped(prune.skip, model.linears, "prune.skip", model.left_alone)
    if prune.pattern == "unstructured":
        return
    _, group = parse_pattern(prune.pattern)
    for name, (_, num_inputs) in model.linears.items():
        if name not in left_alone and num_inputs % group:
            raise UserError(
                f"groups of {group} do not divide the {num_inputs} inputs of {name}; choose another N:M, or leave it "
                "out with prune.skip",
                "prune.pattern",
            )


def check_start(level: float, zeros: float, option: str) -> None:
    """Raises UserError for a level below the share of `zeros` that the model came with."""
    if level and level < zeros - SPARE:
        raise UserError(
            f"the model comes with {zeros:.1%} zeros, which pruning to {level:.1%} would have to undo; choose a level "
            "above that, or model.masks=none to forget its zeros",
            option,
        )
