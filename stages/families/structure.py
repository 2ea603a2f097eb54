"""Describes the parts of a loaded model that stages work on, found by inspection and one short forward pass."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from stages.contracts import Structure, UserError
from stages.families import UNLIMITED, Family, text_config

FILE = "structure.json"
SMALL_SHARE = 0.95
"""Prunable share of the blocks' weights below which a note accompanies every sparsity."""


def of(model: Any, family: Family) -> Structure:
    """Returns the structure. Raises UserError for a model that has nothing to prune, or whose weights change when it
    runs."""
    before = _versions(model)
    blocks = family.blocks(model)
    linears = family.prunable(model)
    alone = family.left_alone(model)
    matrices = {
        f"{block_name}.{name}": parameter
        for block_name, block in blocks
        for name, parameter in block.named_parameters()
        if parameter.dim() >= 2
    }
    others = {
        name: _why_not(name, parameter)
        for name, parameter in matrices.items()
        if name.removesuffix(".weight") not in {*linears, *alone}
    }
    context = family.context(model)
    refused = family.refused(model)
    if changed := [name for name, version in _versions(model).items() if version != before[name]]:
        raise UserError(
            f"{type(model).__name__} changes its own weights when it runs, for example {changed[0]}; such models "
            "cannot be used (RWKV's stay with rescale_every=0 in its config.json)",
            "model.path",
        )
    return Structure(
        linears={name: (linear.out_features, linear.in_features) for name, linear in linears.items()},
        left_alone=alone | others,
        block_weights=sum(parameter.numel() for parameter in matrices.values()),
        prunable_weights=sum(linear.weight.numel() for linear in linears.values()),
        context=None if context >= UNLIMITED else context,
        vocabulary=int(text_config(model).vocab_size),
        refused=refused,
    )


def _versions(model: nn.Module) -> dict[str, int]:
    """Returns the version counter of each saved tensor, which counts writes to it."""
    return {name: tensor._version for name, tensor in model.state_dict(keep_vars=True).items()}


def save(found: Structure, folder: Path) -> None:
    described = {name: value for name, value in asdict(found).items() if name != "zeros"}  # the record has it
    (folder / FILE).write_text(json.dumps(described, indent=1), encoding="utf-8")


def share_note(found: Structure) -> str:
    """Returns one line if a sizeable share of the blocks cannot be pruned; else an empty text."""
    if found.prunable_share >= SMALL_SHARE:
        return ""
    reasons: dict[str, list[str]] = {}
    for name, reason in found.left_alone.items():
        reasons.setdefault(reason, []).append(name)
    reasons_text = "; ".join(f"{reason}: {len(names)}, first {names[0]}" for reason, names in list(reasons.items())[:3])
    return (
        f"{found.prunable_share:.1%} of the weights inside the blocks can be pruned; the rest is not prunable and is "
        f"left dense ({reasons_text})"
    )


def _why_not(name: str, parameter: nn.Parameter) -> str:
    if parameter.dim() > 2 and "expert" in name:
        return "experts in one tensor of a kind that is not known"
    return (
        "a convolution or another tensor that no linear holds" if parameter.dim() > 2 else "not the weight of a linear"
    )
