"""A function's signature and docstring, and its body, which tests check: HumanEval's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.data.prompts import Item


class Function:
    texts = frozenset({"prompt", "body", "tests", "entry_point"})
    """`tests` define `check(candidate)`, which is called with the function named `entry_point`."""
    optional: frozenset[str] = frozenset()
    values: frozenset[str] = frozenset()
    target = "body"

    def item(self, fields: Mapping[str, Any]) -> Item:
        prompt = f"{fields['prompt']}\n"
        body = fields["body"].strip("\n")
        indented = body if body.startswith((" ", "\t")) else f"    {body}"
        program = {"before": prompt, "after": f"\n\n{fields['tests']}\n\ncheck({fields['entry_point']})\n"}
        return Item(prompt, f"{indented}\n" if body else "", judged={"program": program})


PROMPT = Function()
