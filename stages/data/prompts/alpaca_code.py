"""Programming tasks in Alpaca's form."""

from __future__ import annotations

from stages.data.prompts.alpaca import Alpaca

PROMPT = Alpaca("a programming task. Write a program")
