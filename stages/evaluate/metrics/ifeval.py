"""The share of IFEval's verifiable instructions that a model's replies follow (`stages.evaluate.instructions`).

Some are met by chance: beside the score is that of the same replies under other prompts. Prompts that ask for a
language are left out and counted, so that these figures are not those of published tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import Field

from stages.contracts import Log, UserError
from stages.evaluate import answers, instructions
from stages.evaluate.answers import OPTION, Answer, AnswerOptions
from stages.evaluate.metrics import Judged, Measurement

_KEEP = "IFEval's prompts are data=ifeval, or ifeval_instructions, as test_data"


class IFEvalOptions(AnswerOptions):
    max_new_tokens: int = Field(512, ge=1)
    """Longest reply; published figures have 1280."""


class IFEval:
    options = IFEvalOptions

    def check(self, options: IFEvalOptions, judged: Judged) -> None:
        for row in answers.rows_of_items(options, judged):
            if "instruction_id_list" not in row:
                raise UserError(f"ifeval checks instructions, which these items have not; {_KEEP}", OPTION)
            if unknown := [kind for kind in row["instruction_id_list"] if not _is_known(kind)]:
                raise UserError(f"no check for the instruction {unknown[0]!r} of the item {row['id']!r}", OPTION)
        answers.questions(options, judged)

    def measure(self, options: IFEvalOptions, judged: Judged, log: Log) -> dict[str, Measurement]:
        """Returns `ifeval_prompt_*`, the share of prompts all of whose instructions are followed, and
        `ifeval_instruction_*`, that of instructions."""
        every = answers.answer(options, judged, log)
        asked = [given for given in every if instructions.LANGUAGE not in given.question.row["instruction_id_list"]]
        texts = [given.text for given in asked]
        strict, loose = (
            _followed(asked, texts, check) for check in (instructions.follows, instructions.follows_loosely)
        )
        others = _followed(asked, [*texts[1:], *texts[:1]], instructions.follows)
        known = {
            "kind": "IFEval's verifiable instructions, without languages", **answers.protocol(options, judged, asked),
            "left_out": len(every) - len(asked),
        }  # fmt: skip
        answers.save(
            judged, "ifeval",
            ({"id": given.question.id, "score": float(all(found)), "followed": found, "output": given.text}
             for given, found in zip(asked, strict, strict=True)),
        )  # fmt: skip
        measured = {}
        for name, found in (("strict", strict), ("loose", loose)):
            by_chance = {"of_other_prompts": _shares(others)[0]} if name == "strict" else {}
            measured[f"ifeval_prompt_{name}"] = _measured([all(each) for each in found], known | by_chance)
            measured[f"ifeval_instruction_{name}"] = _measured([one for each in found for one in each], known)
        return measured


def _is_known(kind: str) -> bool:
    return kind == instructions.LANGUAGE or kind in instructions.CHECKS


def _followed(
    asked: Sequence[Answer], texts: Sequence[str], check: Callable[[str, Mapping[str, Any], str], bool]
) -> list[list[bool]]:
    rows = [given.question.row for given in asked]
    return [
        [check(kind, given, text) for kind, given in zip(row["instruction_id_list"], row["kwargs"], strict=True)]
        for row, text in zip(rows, texts, strict=True)
    ]


def _shares(found: Sequence[Sequence[bool]]) -> tuple[float, float | None]:
    return answers.mean_and_error([float(all(each)) for each in found])


def _measured(scores: Sequence[bool], known: dict[str, Any]) -> Measurement:
    value, error = answers.mean_and_error([float(score) for score in scores])
    return Measurement(value, error, higher_is_better=True, protocol=known, unit="fraction")


METRIC = IFEval()
