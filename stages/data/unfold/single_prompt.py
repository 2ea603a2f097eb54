"""Converts a text in the column `prompt` to a conversation of one turn for a model to answer: IFEval, AlpacaEval."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from stages.contracts import UserError
from stages.data.rows import Row


def single_prompt(row: Row) -> Iterator[Row]:
    """Yields the row with `messages`."""
    text = row.values.get("prompt", row.values.get("instruction"))
    if not isinstance(text, str):
        raise UserError(f"{row.where} has no text in a column prompt or instruction", "data.unfold")
    yield replace(row, values=row.values | {"messages": [{"role": "user", "content": text}]})


UNFOLD = single_prompt
