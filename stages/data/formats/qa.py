"""A prompt and its completion: loss on both, the answer scored after `####`."""

from __future__ import annotations

from typing import Any

from stages.data.columns import texts
from stages.data.formats import RowKind
from stages.data.rows import Row
from stages.data.spec import Data

_ANSWER_MARK = "####"


class QuestionAnswer:
    rows: RowKind = "items"
    options = Data
    columns = frozenset({"question", "answer", "id"})
    templates = ("question", "answer")
    takes: frozenset[str] = frozenset()

    def row(self, row: Row, data: Data) -> dict[str, Any] | None:
        fields = texts(row, data.columns)
        if fields is None:
            return None
        return {
            "prompt": data.prompt.format_map(fields),
            "completion": data.completion.format_map(fields),
            "answer": fields["answer"].rpartition(_ANSWER_MARK)[2].strip(),
            "question": fields["question"],
            "id": fields["id"],
        }


FORMAT = QuestionAnswer()
