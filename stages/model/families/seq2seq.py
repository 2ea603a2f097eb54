"""Encoder-decoders of text other than T5."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.model.families import FamilyDescription

if TYPE_CHECKING:
    from stages.families import Family


def adapter() -> Family:
    from stages.families.seq2seq import Seq2Seq

    return Seq2Seq()


MODEL_TYPES = frozenset(
    {"umt5", "bart", "mbart", "marian", "m2m_100", "pegasus", "blenderbot", "blenderbot-small", "mvp", "plbart"}
)
FAMILY = FamilyDescription(adapter, reads=("pairs",), model_types=MODEL_TYPES, is_encoder_decoder=True)
