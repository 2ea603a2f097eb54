"""The negative log-likelihood of held-out targets (completions, the assistant's turns), in nats a token."""

from __future__ import annotations

from pydantic import Field

from stages.contracts import Log, UserError
from stages.evaluate import answers
from stages.evaluate.answers import OPTION, ItemOptions
from stages.evaluate.metrics import Judged, Measurement


class TargetNLLOptions(ItemOptions):
    length: int = Field(0, ge=0)
    """Longest item in tokens, cut as in training; 0: the model's context."""


class TargetNLL:
    options = TargetNLLOptions

    def check(self, options: TargetNLLOptions, judged: Judged) -> None:
        self._encoded(options, judged)

    def measure(self, options: TargetNLLOptions, judged: Judged, log: Log) -> Measurement:
        from stages.evaluate import likelihoods

        found = likelihoods.of_targets(judged, self._encoded(options, judged), log, "target_nll")
        total, tokens = sum(item.nats for item in found), sum(item.tokens for item in found)
        value = total / tokens
        # of a ratio of two sums, by the delta method
        _, spread = answers.mean_and_error([item.nats - value * item.tokens for item in found])
        return Measurement(
            value,
            None if spread is None else spread * len(found) / tokens,
            higher_is_better=False,
            protocol={
                "kind": "negative log-likelihood of targets, nats a token",
                "split": options.split,
                "items": len(found),
                "tokens": tokens,
                "loss_on": judged.tests.loss_on,
                "length": options.length,
                "data_digest": judged.tests.digest,
                "stderr": "delta method, items independent",
            },
            unit="nats",
        )

    @staticmethod
    def _encoded(options: TargetNLLOptions, judged: Judged) -> list:  # type: ignore[type-arg]
        context = judged.family.context(judged.model)
        length = min(options.length or context, context)
        asking = answers.items(judged)
        rows = answers.rows_of_items(options, judged)
        encoded = [asking.encode(row, length, f"{OPTION}.target_nll.length") for row in rows]
        found = [tokens for tokens in encoded if tokens is not None]
        if not found:
            raise UserError(f"the split {options.split!r} has no items with a target", OPTION)
        return found


METRIC = TargetNLL()
