"""Families of models: what a run is planned by. A file each, and a file in conf/model/.

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
    """Makes what loads, walks and trains its models; imports torch."""
    reads: tuple[RowKind, ...]
    """Rows that it can be trained and judged on."""
    model_types: frozenset[str] = frozenset()
    """The `model_type`s of config.json that belong to it, of which no other family may have one. Decoder-only models
    of no family are of `causal_lm`."""
    is_encoder_decoder: bool = False
    """It writes texts, which `evaluate.generation` scores, and has no perplexity."""
    keeps_attention: bool = False
    """Its attention is not fused: the backward pass needs the matrices of all heads, for estimates of memory."""
    from_scratch: bool = False
    """Whether the stage `scratch` makes models of it."""


FAMILIES: Kinds[FamilyDescription] = Kinds("family", __name__, "FAMILY", "model.family", FamilyDescription)


def family_of_type() -> dict[str, str]:
    """`model_type` of config.json -> the family that it belongs to. Raises UserError where two families name one."""
    found: dict[str, str] = {}
    for name in FAMILIES.names():
        for model_type in sorted(FAMILIES.get(name).model_types):
            if model_type in found:
                raise UserError(f"{found[model_type]} and {name} both name the model type {model_type}", "model.family")
            found[model_type] = name
    return found
