"""A prompt and its completion, from templates: the answer is scored after a mark."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from stages.data.columns import texts
from stages.data.formats import RowKind
from stages.data.rows import Row
from stages.data.spec import ItemData, LossOn


class QuestionAnswerData(ItemData):
    added: ClassVar[frozenset[str]] = ItemData.added | {"answer_mark"}

    loss_on: LossOn = "all"
    answer_mark: str = Field("####", min_length=1)
    """Exact match compares the text after its last occurrence; without one, the whole text is the answer."""

    def item_facts(self) -> dict[str, Any]:
        return super().item_facts() | {"answer_mark": self.answer_mark}


class QuestionAnswer:
    rows: RowKind = "items"
    options = QuestionAnswerData
    columns = frozenset({"question", "answer", "id"})
    templates = ("question", "answer")
    takes: frozenset[str] = frozenset()

    def row(self, row: Row, data: QuestionAnswerData) -> dict[str, Any] | None:
        fields = texts(row, data.columns)
        if fields is None:
            return None
        return {
            "prompt": data.prompt.format_map(fields),
            "completion": data.completion.format_map(fields),
            "answer": fields["answer"].rpartition(data.answer_mark)[2].strip(),
            "question": fields["question"],
            "id": fields["id"],
            **data.kept(row),
        }


FORMAT = QuestionAnswer()
