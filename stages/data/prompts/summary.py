"""An article and its summary. The end of a long article is cut, never the summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.data.prompts import Item

_BEFORE, _AFTER = "Article:\n", "\n\n### Summarization:\n"


class Summary:
    texts = frozenset({"article", "summary"})
    optional: frozenset[str] = frozenset()
    values: frozenset[str] = frozenset()
    target = "summary"

    def item(self, fields: Mapping[str, Any]) -> Item:
        article, summary = fields["article"], fields["summary"]
        span = (len(_BEFORE), len(_BEFORE) + len(article))
        return Item(f"{_BEFORE}{article}{_AFTER}", f"{summary}\n" if summary else "", span, {"article": article})


PROMPT = Summary()
