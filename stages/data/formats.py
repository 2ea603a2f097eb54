"""This project's form of a row, in each of the formats."""

from __future__ import annotations

import math
from typing import Any

from stages.contracts import UserError
from stages.data.rows import Row
from stages.data.spec import Data

_ANSWER_MARK = "####"


def formatted(row: Row, config: Data) -> dict[str, str] | None:
    """Without audio, which is not text; None if a field that should have text has none."""
    columns = {ours: theirs for ours, theirs in config.columns.items() if ours != "audio"}
    fields = {ours: _text(row, ours, theirs) for ours, theirs in columns.items()}
    if config.verbatim:
        text = value(row, "text", columns["text"])
        if _is_missing(text):
            raise UserError(
                f"{row.where}: nothing stands in column {columns['text']!r}, and verbatim rows are not left out; "
                "expected text",
                "data.verbatim",
            )
        return {"text": str(text), "id": fields["id"]}
    if not all(fields.values()):
        return None
    if config.format in ("text", "speech"):
        return {"text": fields["text"], "id": fields["id"]}
    if config.format == "translation":
        return {
            "source": config.prompt.format_map(fields),
            "target": config.completion.format_map(fields),
            "id": fields["id"],
        }
    return {
        "prompt": config.prompt.format_map(fields),
        "completion": config.completion.format_map(fields),
        "answer": fields["answer"].rpartition(_ANSWER_MARK)[2].strip(),
        "question": fields["question"],
        "id": fields["id"],
    }


def value(row: Row, ours: str, theirs: str) -> Any:
    """What a row has in a column, or, as in `translation.en`, in a column inside a column."""
    found: Any = row.values
    for part in (theirs,) if theirs in found else theirs.split("."):
        if not isinstance(found, dict) or part not in found:
            have = ", ".join(found) if isinstance(found, dict) else type(found).__name__
            raise UserError(f"{row.where} has no column {theirs!r}; it has: {have}", f"data.columns.{ours}")
        found = found[part]
    return found


def _is_missing(found: Any) -> bool:
    """Tables of pandas mark what is missing by a number that is not one (NaN)."""
    return found is None or (isinstance(found, float) and math.isnan(found))


def _text(row: Row, ours: str, theirs: str) -> str:
    found = value(row, ours, theirs)
    if _is_missing(found):
        return ""
    if isinstance(found, bool) or not isinstance(found, str | int | float):
        kind = type(found).__name__
        raise UserError(f"{row.where}: expected text in column {theirs!r}, got {kind}", f"data.columns.{ours}")
    text = str(found).strip()
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{row.where}: column {theirs!r} is not valid Unicode: {error}", "data.path") from None
    return text
