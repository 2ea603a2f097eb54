"""Statistics of a model's replies: how often it ends by itself, how long its replies are, how much they repeat; and all
of them in `outputs.json`, in AlpacaEval's form, for a user who has a judge. They do not measure how good the replies
are."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field

from stages.contracts import Log, UserError
from stages.evaluate import answers
from stages.evaluate.answers import OPTION, AnswerOptions
from stages.evaluate.metrics import Judged, Measurement

FILE = "outputs.json"


class RepliesOptions(AnswerOptions):
    max_new_tokens: int = Field(256, ge=1)
    """Longest reply."""
    generator: str = "squarehead"
    """Name of the model in the file of outputs."""


def repeated(text: str, n: int = 4) -> float:
    """Returns the share of a text's n-grams of words that occurred before in it; 0 for a shorter text."""
    words = text.split()
    grams = [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


class Replies:
    options = RepliesOptions

    def check(self, options: RepliesOptions, judged: Judged) -> None:
        if not answers.questions(options, judged):
            raise UserError(f"the split {options.split!r} has no items", OPTION)

    def measure(self, options: RepliesOptions, judged: Judged, log: Log) -> dict[str, Measurement]:
        found = answers.answer(options, judged, log, distinct=True)
        assert judged.out is not None
        outputs = [
            {"instruction": _instruction(given.question), "output": given.text.strip(), "generator": options.generator,
             "dataset": judged.tests.digest[:12]}
            for given in found
        ]  # fmt: skip
        (judged.out / FILE).write_text(json.dumps(outputs, ensure_ascii=False, indent=1), encoding="utf-8")
        known = answers.protocol(options, judged, found)
        return {
            "reply_stop_rate": _mean(
                [float(given.stopped) for given in found], known, "ended by the model", True, "fraction"
            ),
            "reply_repeated_4grams": _mean(
                [repeated(given.text) for given in found], known, "share of 4-grams", False, "fraction"
            ),
            "reply_tokens": _mean(
                [float(given.tokens) for given in found], known, "mean length of replies", None, "tokens"
            ),
        }


def _instruction(question: Any) -> str:
    turns = question.row.get("messages")
    asked = [turn["content"] for turn in turns if turn["role"] == "user"] if turns else [question.prompt]
    return str(asked[-1])


def _mean(scores: list[float], known: dict[str, Any], kind: str, better: bool | None, unit: str) -> Measurement:
    value, error = answers.mean_and_error(scores)
    return Measurement(value, error, better, {"kind": kind, **known}, unit)


METRIC = Replies()
