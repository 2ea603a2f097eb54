"""Rows as their source has them, before they are converted to this project's formats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    where: str
    """Place for error messages: `file:line`, or a split and an index."""
    values: dict[str, Any]
    folder: Path | None = None
    """Folder of the files that the row names; None if it may name none."""


@dataclass(frozen=True)
class Raw:
    """Rows by the source's own split names; a source without splits has all in `train`.

    Rows may be read during iteration, once.
    """

    splits: Mapping[str, Iterable[Row]]
    license: str
    unnamed: tuple[str, ...] = ()
    """Splits of files whose names indicate none; they are read only if `data.splits` names them."""
    note: str = ""
    """Note about the splits' names; empty if there is nothing to say."""
