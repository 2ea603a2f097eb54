"""Items made by a prompt format: an instruction and its answer, an article and its summary, a function and its body."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import model_validator

from stages.data.columns import text, value
from stages.data.formats import RowKind
from stages.data.prompts import PROMPTS
from stages.data.rows import Row
from stages.data.spec import ItemData


class PromptedData(ItemData):
    prompt_format: Annotated[str, PROMPTS]
    """A file of `stages/data/prompts/`, or what installed packages add. It determines the `columns`."""
    prompt: str = ""
    completion: str = ""

    @model_validator(mode="after")
    def _columns_fit(self) -> PromptedData:
        form = PROMPTS.get(self.prompt_format)
        needed, given = form.texts | form.values | {"id"}, set(self.columns)
        if not needed <= given <= needed | form.optional:
            more = f", perhaps {sorted(form.optional)}" if form.optional else ""
            raise ValueError(f"{self.prompt_format} needs columns for {sorted(needed)}{more}, got {sorted(given)}")
        if self.prompt or self.completion:
            raise ValueError(f"{self.prompt_format} makes the prompt itself; leave prompt and completion empty")
        return self


class Prompted:
    rows: RowKind = "items"
    options = PromptedData
    columns = None
    templates = None
    takes: frozenset[str] = frozenset()

    def row(self, row: Row, data: PromptedData) -> dict[str, Any] | None:
        form = PROMPTS.get(data.prompt_format)
        only_asked = not data.columns[form.target]
        texts = (form.texts | form.optional | {"id"}) & data.columns.keys()
        fields: dict[str, Any] = {name: text(row, name, data.columns[name]) for name in texts if data.columns[name]}
        fields |= {name: value(row, name, data.columns[name]) for name in form.values}
        if only_asked:
            fields[form.target] = ""
        if not all(fields[name] for name in (form.texts - {form.target} if only_asked else form.texts) | {"id"}):
            return None
        item = form.item(fields)
        found = {"prompt": item.prompt, "completion": item.completion, "id": fields["id"], **item.judged}
        return found | ({"cut": list(item.cut)} if item.cut else {}) | data.kept(row)


FORMAT = Prompted()
