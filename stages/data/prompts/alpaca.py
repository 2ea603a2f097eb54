"""Instructions in Alpaca's form: the instruction, an input if there is one, the response."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.data.prompts import Item

_TASK = "a task. Write a response"


class Alpaca:
    texts = frozenset({"instruction", "output"})
    optional = frozenset({"input"})
    values: frozenset[str] = frozenset()
    target = "output"

    def __init__(self, task: str = _TASK) -> None:
        self._task = task

    def item(self, fields: Mapping[str, Any]) -> Item:
        given = f"### Input:\n{fields['input']}\n\n" if fields.get("input") else ""
        prompt = (
            f"Below is an instruction that describes {self._task} that appropriately completes the request.\n\n"
            f"### Instruction:\n{fields['instruction']}\n\n{given}### Response:\n"
        )
        return Item(prompt, fields["output"])


PROMPT = Alpaca()
