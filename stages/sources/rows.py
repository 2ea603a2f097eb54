"""Rows as their source has them, before they take this project's form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    where: str
    """For errors: `file:line`, or a split and an index."""
    values: dict[str, Any]


@dataclass(frozen=True)
class Raw:
    """What a reader found: rows by the source's own split names; a source without splits has all in `train`."""

    splits: dict[str, list[Row]]
    license: str
