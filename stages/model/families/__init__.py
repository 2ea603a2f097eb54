"""Families of models, as a run is planned by. A file each, and a file in conf/model/.

A member defines `FAMILY`. Its file is read when a run is planned, which must not import torch: it does so in `adapter`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.contracts import UserError
from stages.data.formats import RowKind
from stages.kinds import Kinds

if TYPE_CHECKING:
    from stages.families import Family


@dataclass(frozen=True)
class FamilyDescription:
    adapter: Callable[[], Family]
    """Makes the adapter, which loads, walks and trains its models; imports torch."""
    reads: tuple[RowKind, ...]
    """Kinds of rows that it can be trained and evaluated on."""
    model_types: frozenset[str] = frozenset()
    """The `model_type`s of config.json that belong to it, each to one family only. Decoder-only models of no family
    belong to `causal_lm`."""
    is_encoder_decoder: bool = False
    """Whether it generates texts, which `evaluate.generation` scores, and has no perplexity."""
    keeps_attention: bool = False
    """Whether its attention is not fused, so that the backward pass keeps the matrices of all heads; for estimates of
    memory."""
    from_scratch: bool = False
    """Whether the stage `scratch` makes models of it."""


FAMILIES: Kinds[FamilyDescription] = Kinds("family", __name__, "FAMILY", "model.family", FamilyDescription)


def family_of_type() -> dict[str, str]:
    """Returns the family of each `model_type` of config.json. Raises UserError if two families name one."""
    found: dict[str, str] = {}
    for name in FAMILIES.names():
        for model_type in sorted(FAMILIES.get(name).model_types):
            if model_type in found:
                raise UserError(f"{found[model_type]} and {name} both name the model type {model_type}", "model.family")
            found[model_type] = name
    return found
