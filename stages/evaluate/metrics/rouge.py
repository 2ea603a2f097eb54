"""ROUGE-1, -2, -L and -Lsum of generated texts, by the package rouge_score: F-measure, stemmed, in percent.

ROUGE-Lsum expects one sentence a line: both texts are split after `.`, `!` and `?` that are followed by a space, and at
their own line ends.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from stages.contracts import Log, UserError
from stages.evaluate import answers
from stages.evaluate.answers import OPTION, AnswerOptions
from stages.evaluate.metrics import Judged, Measurement

TYPES = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL", "rouge_lsum": "rougeLsum"}
_SENTENCES = r"(?<=[.!?])\s+"
_CLAUSE = re.compile(r"\b(?:is|was|are|were) (?:an? |the )?([^,\n]*?)(?:,|\.\s|\.$|\n|$)")


class RougeOptions(AnswerOptions):
    max_new_tokens: int = Field(100, ge=1)
    """Longest summary."""
    rule: bool = False
    """Also score a rule, for descriptions of Wikipedia leads: the text after the first "is a", "was the", "are" of the
    article, up to the next comma or full stop. Only a model that scores higher is of interest."""


def lead_rule(article: str) -> str:
    """Returns the rule's description; the first sentence if it finds no such words."""
    found = _CLAUSE.search(article)
    return found.group(1).strip() if found else re.split(_SENTENCES, article.strip(), maxsplit=1)[0]


def scores(references: Sequence[str], texts: Sequence[str]) -> dict[str, list[float]]:
    """Returns the scores of each pair, in percent."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(TYPES.values()), use_stemmer=True)
    found: dict[str, list[float]] = {name: [] for name in TYPES}
    for reference, text in zip(references, texts, strict=True):
        scored = scorer.score(_lines(reference), _lines(text))
        for name, kind in TYPES.items():
            found[name].append(100 * scored[kind].fmeasure)
    return found


def _lines(text: str) -> str:
    return "\n".join(re.split(_SENTENCES, text.strip()))


class Rouge:
    options = RougeOptions

    def check(self, options: RougeOptions, judged: Judged) -> None:
        asked = answers.questions(options, judged)
        if any(not question.reference.strip() for question in asked):
            raise UserError("ROUGE compares with texts, and some of these items have none", OPTION)
        if options.rule and any("article" not in question.row for question in asked):
            raise UserError("the rule reads articles, which these items have not", f"{OPTION}.rouge.rule")

    def measure(self, options: RougeOptions, judged: Judged, log: Log) -> dict[str, Measurement]:
        found = answers.answer(options, judged, log)
        references = [given.question.reference for given in found]
        ours = scores(references, [given.text for given in found])
        rule = scores(references, [lead_rule(given.question.row["article"]) for given in found]) if options.rule else {}
        lines = [
            {"id": given.question.id, "score": ours["rouge_l"][number], "reference": given.question.reference.strip(),
             "output": given.text.strip()}
            for number, given in enumerate(found)
        ]  # fmt: skip
        answers.save(judged, "rouge", lines)
        known = {"kind": "rouge_score F, percent", "stemmed": True, **answers.protocol(options, judged, found)}
        return {name: _measured(name, ours[name], known, rule.get(name)) for name in TYPES}


def _measured(name: str, scored: list[float], known: dict[str, Any], rule: list[float] | None) -> Measurement:
    value, error = answers.mean_and_error(scored)
    more: dict[str, Any] = {"sentences": "after .!? and at line ends"} if name == "rouge_lsum" else {}
    if rule is not None:
        more["rule"] = answers.mean_and_error(rule)[0]
    return Measurement(value, error, higher_is_better=True, protocol={"metric": name, **known, **more})


METRIC = Rouge()
