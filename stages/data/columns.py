"""Reads the texts in the columns of a row, as a data format needs them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stages.contracts import UserError
from stages.data.rows import Row


def texts(row: Row, columns: Mapping[str, str]) -> dict[str, str] | None:
    """Returns the text of each of our fields from its column (`data.columns`); None if a column is empty."""
    found = {ours: text(row, ours, theirs) for ours, theirs in columns.items()}
    return found if all(found.values()) else None


def verbatim(row: Row, columns: Mapping[str, str]) -> dict[str, str]:
    """Returns `text` unchanged, spaces included, and `id`. Raises UserError if `text` is missing."""
    found = value(row, "text", columns["text"])
    if _is_missing(found):
        raise UserError(
            f"{row.where}: column {columns['text']!r} is empty, and verbatim rows are not left out; expected text",
            "data.verbatim",
        )
    return {"text": str(found), "id": text(row, "id", columns["id"])}


def value(row: Row, ours: str, theirs: str) -> Any:
    """Returns the value (`held`) of the column that `data.columns` names."""
    return held(row, theirs, f"data.columns.{ours}")


def held(row: Row, column: str, option: str) -> Any:
    """Returns the value of a column, or, as in `translation.en`, of a column inside a column; None inside a column
    without a value. Raises UserError, with the option that names the column, if there is none."""
    found: Any = row.values
    for part in (column,) if column in found else column.split("."):
        if found is None:
            return None
        if not isinstance(found, dict) or part not in found:
            have = ", ".join(found) if isinstance(found, dict) else type(found).__name__
            raise UserError(f"{row.where} has no column {column!r}; it has: {have}", option)
        found = found[part]
    return found


def _is_missing(found: Any) -> bool:
    """Returns whether a value is missing; pandas marks that by NaN."""
    return found is None or (isinstance(found, float) and math.isnan(found))


def text(row: Row, ours: str, theirs: str) -> str:
    """Returns the text of one column, stripped; empty if it has none."""
    found = value(row, ours, theirs)
    if _is_missing(found):
        return ""
    if isinstance(found, bool) or not isinstance(found, str | int | float):
        kind = type(found).__name__
        raise UserError(f"{row.where}: expected text in column {theirs!r}, got {kind}", f"data.columns.{ours}")
    stripped = str(found).strip()
    try:
        stripped.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{row.where}: column {theirs!r} is not valid Unicode: {error}", "data.path") from None
    return stripped
