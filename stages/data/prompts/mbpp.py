"""A task in words with one of its tests, in a docstring, and the program that passes all of them: MBPP, in the prompt
of the BigCode harness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.data.prompts import Item


class MBPP:
    texts = frozenset({"task", "code"})
    optional = frozenset({"setup"})
    values = frozenset({"tests"})
    target = "code"

    def item(self, fields: Mapping[str, Any]) -> Item:
        tests = list(fields["tests"])
        code = fields["code"].replace("\r\n", "\n")
        after = "\n".join(["", fields.get("setup") or "", *tests, ""])
        prompt = f'"""\n{fields["task"]}\n{tests[0]}\n"""\n'
        return Item(prompt, f"{code}\n" if code else "", judged={"program": {"before": "", "after": after}})


PROMPT = MBPP()
