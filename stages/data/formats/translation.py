"""Pairs of a source, with its prompt, and a target."""

from __future__ import annotations

from typing import Any

from stages.data.columns import texts
from stages.data.formats import RowKind
from stages.data.rows import Row
from stages.data.spec import Data


class Translation:
    rows: RowKind = "pairs"
    options = Data
    columns = frozenset({"source", "target", "id"})
    templates = ("source", "target")
    takes = frozenset({"languages"})

    def row(self, row: Row, data: Data) -> dict[str, Any] | None:
        fields = texts(row, data.columns)
        if fields is None:
            return None
        return {
            "source": data.prompt.format_map(fields),
            "target": data.completion.format_map(fields),
            "id": fields["id"],
        }


FORMAT = Translation()
