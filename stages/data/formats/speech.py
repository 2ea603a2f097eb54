"""Audio files and their transcripts."""

from __future__ import annotations

from typing import Any

from stages.data.columns import texts
from stages.data.formats import RowKind
from stages.data.rows import Row
from stages.data.spec import Data


class Speech:
    rows: RowKind = "clips"
    options = Data
    columns = frozenset({"audio", "text", "id"})
    templates = ("question", "answer")  # it reads neither; its files hold those of qa
    takes = frozenset({"speech"})

    def row(self, row: Row, data: Data) -> dict[str, Any] | None:
        return texts(row, {ours: theirs for ours, theirs in data.columns.items() if ours != "audio"})


FORMAT = Speech()
