"""T5 and models with the same modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.model.families import FamilyDescription

if TYPE_CHECKING:
    from stages.families import Family


def adapter() -> Family:
    from stages.families.t5 import T5

    return T5()


FAMILY = FamilyDescription(
    adapter,
    reads=("pairs",),
    model_types=frozenset({"t5", "mt5"}),
    is_encoder_decoder=True,
    keeps_attention=True,
    from_scratch=True,
)
