"""Unfolds Self-Instruct's tasks: an instruction with instances of inputs and outputs becomes a row for each
instance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from stages.contracts import UserError
from stages.data.rows import Row


def self_instruct(row: Row) -> Iterator[Row]:
    """Yields {"instruction", "input", "output", "id"}."""
    instances = row.values.get("instances")
    if not isinstance(instances, list):
        raise UserError(f"{row.where} has no list of instances, as Self-Instruct's tasks have", "data.unfold")
    for number, instance in enumerate(instances):
        values = {name: row.values.get(name) for name in ("id", "instruction")}
        yield replace(row, where=f"{row.where}[{number}]", values=values | instance)


UNFOLD = self_instruct
