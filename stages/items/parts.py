"""The texts that an item consists of, in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Part:
    text: str
    learned: bool = False
    """Whether it is a target: a completion, a turn of the assistant."""
    cut: bool = False
    """Whether it may be cut at its end if the item is too long."""


def of_row(row: Mapping[str, Any]) -> list[Part]:
    """Returns the parts of a row with a `prompt`, a `completion` and perhaps `cut`, the characters of the prompt that
    may be cut."""
    prompt = row["prompt"]
    begin, end = row.get("cut") or (0, 0)
    texts = [Part(prompt[:begin]), Part(prompt[begin:end], cut=True), Part(prompt[end:])]
    return [part for part in [*texts, Part(row["completion"], learned=True)] if part.text]
