"""A data format: running text in capitals."""

from __future__ import annotations

from typing import Any, ClassVar

from stages.data.columns import texts
from stages.data.formats import RowKind
from stages.data.rows import Row
from stages.data.spec import Data


class ShoutedData(Data):
    added: ClassVar[frozenset[str]] = frozenset()

    mark: str = "!"
    """What a text ends with."""


class Shouted:
    rows: RowKind = "texts"
    options = ShoutedData
    columns = frozenset({"text", "id"})
    templates = None
    takes: frozenset[str] = frozenset()

    def row(self, row: Row, data: ShoutedData) -> dict[str, Any] | None:
        found = texts(row, data.columns)
        return found and {"text": found["text"].upper() + data.mark, "id": found["id"]}


FORMAT = Shouted()
