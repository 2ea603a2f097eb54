"""Decoder-only language models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.model.families import FamilyDescription

if TYPE_CHECKING:
    from stages.families import Family


def adapter() -> Family:
    from stages.families.causal_lm import CausalLM

    return CausalLM()


FAMILY = FamilyDescription(adapter, reads=("texts", "items", "conversations"), from_scratch=True)
