"""Prompt formats: how the fields of an item become the prompt that a model reads and the completion that it learns to
write. A file each.

A member defines `PROMPT`. Its function `item` makes training rows, calibration rows and evaluation prompts. Its file is
read when a run is planned: plain Python, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from stages.kinds import Kinds


@dataclass(frozen=True)
class Item:
    prompt: str
    completion: str
    """Text to learn; empty for an item that is only evaluated."""
    cut: tuple[int, int] | None = None
    """Characters of the prompt that are cut from their end if the item is too long: the article of a summary."""
    judged: Mapping[str, Any] = field(default_factory=dict)
    """Further values for metrics, such as the tests of a function. JSON."""


@runtime_checkable
class PromptFormat(Protocol):
    texts: frozenset[str]
    """Columns (`data.columns`) that hold text; a row without one of them is left out."""
    optional: frozenset[str]
    """Columns that may be left out, or be empty in a row."""
    values: frozenset[str]
    """Columns that are used unchanged, such as lists of tests."""
    target: str
    """Column of `texts` that is learned; mapped to an empty name, the data are prompts for evaluation only."""

    def item(self, fields: Mapping[str, Any]) -> Item: ...


PROMPTS: Kinds[PromptFormat] = Kinds("prompt format", __name__, "PROMPT", "data.prompt_format", PromptFormat)
