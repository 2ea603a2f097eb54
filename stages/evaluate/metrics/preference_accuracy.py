"""How often a model finds the reply that people ranked first more likely than one that they ranked lower. Not a win
rate.

Replies are compared by the mean log-likelihood of their tokens after the same conversation, so that their length does
not decide. Chance is 50 %.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from stages.contracts import Log, UserError
from stages.evaluate import answers
from stages.evaluate.answers import OPTION, ItemOptions
from stages.evaluate.metrics import Judged, Measurement


class PreferenceOptions(ItemOptions):
    length: int = Field(0, ge=0)
    """Longest conversation with its reply, in tokens; 0: the model's context. Longer ones are left out and counted."""


class PreferenceAccuracy:
    options = PreferenceOptions

    def check(self, options: PreferenceOptions, judged: Judged) -> None:
        rows = answers.rows_of_items(options, judged)
        if any(not isinstance(row.get("replies"), list) or len(row["replies"]) < 2 for row in rows):
            raise UserError(
                "preference accuracy compares replies: conversations with ranked `replies`, the best first, as "
                "data.unfold=oasst_replies with data.keep=[replies] makes them",
                OPTION,
            )
        self._encoded(options, judged)

    def measure(self, options: PreferenceOptions, judged: Judged, log: Log) -> Measurement:
        from stages.evaluate import likelihoods

        rows, groups = self._encoded(options, judged)
        flat = [tokens for group in groups for tokens in group]
        likely = iter(likelihoods.of_targets(judged, flat, log, "preference_accuracy"))
        shares = []
        for group in groups:
            first, *others = [next(likely).mean for _ in group]
            wins = [1.0 if first < other else 0.5 if first == other else 0.0 for other in others]
            shares.append(sum(wins) / len(wins))
        answers.save(
            judged, "preference_accuracy",
            ({"id": row["id"], "score": share} for row, share in zip(rows, shares, strict=True)),
        )  # fmt: skip
        value, error = answers.mean_and_error(shares)
        return Measurement(
            value,
            error,
            higher_is_better=True,
            protocol={
                "kind": "preference accuracy by mean token log-likelihood; chance is 0.5, and this is no win rate",
                "split": options.split,
                "items": len(shares),
                "replies": len(flat),
                "too_long": len(answers.rows_of_items(options, judged)) - len(rows),
                "length": options.length,
                "data_digest": judged.tests.digest,
                "stderr": "prompts independent",
            },
            unit="fraction",
        )

    @staticmethod
    def _encoded(options: PreferenceOptions, judged: Judged) -> tuple[list[dict[str, Any]], list[list[Any]]]:
        """Returns the rows that are used, and the tokens of their replies."""
        context = judged.family.context(judged.model)
        length = min(options.length or context, context)
        asking = answers.items(judged)
        rows, groups = [], []
        for row in answers.rows_of_items(options, judged):
            group = []
            for reply in row["replies"]:
                turns = [*row["messages"], {"role": "assistant", "content": reply}]
                group.append(asking.encode({"messages": turns, "id": row["id"]}, length + 1, OPTION, last_target=True))
            if all(tokens is not None and len(tokens.ids) <= length for tokens in group):
                rows.append(row)
                groups.append(group)
        if not groups:
            raise UserError(f"no conversation with its replies fits {length} tokens", f"{OPTION}.preference_accuracy")
        return rows, groups


METRIC = PreferenceAccuracy()
