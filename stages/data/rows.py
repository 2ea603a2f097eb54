"""Rows as their source has them, before they take this project's form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    where: str
    """For errors: `file:line`, or a split and an index."""
    values: dict[str, Any]
    folder: Path | None = None
    """Where files lie that the row names; None where it may name none."""


@dataclass(frozen=True)
class Raw:
    """What a reader found: rows by the source's own split names; a source without splits has all in `train`.

    Rows may be read while they are iterated over, once.
    """

    splits: Mapping[str, Iterable[Row]]
    license: str
    unnamed: tuple[str, ...] = ()
    """Of `splits`: files whose names say no split, read only if `data.splits` names them."""
    note: str = ""
    """What a reader should know of the splits' names; empty where nothing is to be said."""
