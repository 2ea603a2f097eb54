"""The share of items whose answer equals that of the data, comparing the text after the answer's mark."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from stages.contracts import Log, UserError
from stages.evaluate import answers
from stages.evaluate.answers import OPTION, AnswerOptions
from stages.evaluate.metrics import Judged, Measurement


class ExactMatchOptions(AnswerOptions):
    by: str = ""
    """Also report each value of this column (`data.keep`): `terms` of chain arithmetic."""


def normalized(text: str) -> str:
    """Removes thousands' commas, dollar signs and a full stop at the end, as lm-eval's gsm8k does."""
    return text.strip().replace(",", "").replace("$", "").removesuffix(".").strip()


class ExactMatch:
    options = ExactMatchOptions

    def check(self, options: ExactMatchOptions, judged: Judged) -> None:
        rows = answers.rows_of_items(options, judged)
        if not rows or "answer" not in rows[0]:
            raise UserError(f"exact match compares answers, which data of format {judged.tests.format} lack", OPTION)
        if options.by and options.by not in rows[0]:
            raise UserError(f"these items have no {options.by!r}; data.keep would bring it", f"{OPTION}.exact_match.by")
        answers.questions(options, judged)

    def measure(self, options: ExactMatchOptions, judged: Judged, log: Log) -> dict[str, Measurement]:
        """Returns `exact_match`, and `exact_match_<by>_<value>` for each value."""
        mark = judged.tests.answer_mark
        scored: dict[str, list[float]] = defaultdict(list)
        rows = []
        found = answers.answer(options, judged, log)
        for given in found:
            row = given.question.row
            said = given.text.rpartition(mark)[2] if mark in given.text else ""
            score = float(bool(said.strip()) and normalized(said) == normalized(str(row["answer"])))
            scored[""].append(score)
            if options.by:
                scored[str(row[options.by])].append(score)
            rows.append({"id": given.question.id, "score": score, "answer": row["answer"], "output": given.text})
        answers.save(judged, "exact_match", rows)
        known = {"kind": "exact match", "metric": "exact_match", **answers.protocol(options, judged, found)}
        known["answer_mark"] = mark
        return {
            "_".join(["exact_match", *([options.by, group] if group else [])]): _share(scored[group], known)
            for group in sorted(scored)
        }


def _share(scores: list[float], known: dict[str, Any]) -> Measurement:
    value, error = answers.mean_and_error(scores)
    return Measurement(value, error, higher_is_better=True, protocol=known | {"items": len(scores)}, unit="fraction")


METRIC = ExactMatch()
