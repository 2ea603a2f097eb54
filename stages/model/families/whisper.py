"""Whisper: speech to text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.model.families import FamilyDescription

if TYPE_CHECKING:
    from stages.families import Family


def adapter() -> Family:
    from stages.families.whisper import Whisper

    return Whisper()


FAMILY = FamilyDescription(adapter, reads=("clips",), model_types=frozenset({"whisper"}), is_encoder_decoder=True)
