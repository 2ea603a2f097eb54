"""Running text."""

from __future__ import annotations

from typing import Any

from stages.data.columns import texts, verbatim
from stages.data.formats import RowKind
from stages.data.rows import Row
from stages.data.spec import Data


class Text:
    rows: RowKind = "texts"
    options = Data
    columns = frozenset({"text", "id"})
    templates = ("question", "answer")  # it reads neither; its files hold those of qa
    takes = frozenset({"verbatim"})

    def row(self, row: Row, data: Data) -> dict[str, Any] | None:
        return verbatim(row, data.columns) if data.verbatim else texts(row, data.columns)


FORMAT = Text()
