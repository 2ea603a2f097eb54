"""A family: Llamas, by the adapter of all decoder-only models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.model.families import FamilyDescription

if TYPE_CHECKING:
    from stages.families import Family


def adapter() -> Family:
    from stages.families.causal_lm import CausalLM

    class Small(CausalLM):
        name = "small"

    return Small()


FAMILY = FamilyDescription(adapter, reads=("texts", "items"), model_types=frozenset({"llama"}))
