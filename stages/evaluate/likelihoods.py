"""Computes the log-likelihoods that a causal model gives to the learned tokens of items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.contracts import Log
from stages.evaluate.metrics import Judged

if TYPE_CHECKING:
    from stages.items.encoding import Tokens


@dataclass(frozen=True)
class Likelihood:
    nats: float
    """Negative log-likelihood, summed."""
    tokens: int

    @property
    def mean(self) -> float:
        return self.nats / self.tokens


def of_targets(judged: Judged, encoded: Sequence[Tokens], log: Log, what: str) -> list[Likelihood]:
    """Returns the likelihood of each item, over its learned tokens except the first of the item, which nothing
    predicts."""
    import torch

    order = sorted(range(len(encoded)), key=lambda number: -len(encoded[number].ids))
    found: dict[int, Likelihood] = {}
    with torch.inference_mode(), log.bar(what, total=len(encoded), unit="item") as bar:
        for begin in range(0, len(order), judged.batch_size):
            chosen = order[begin : begin + judged.batch_size]
            for number, likelihood in zip(chosen, _batch(judged, [encoded[n] for n in chosen]), strict=True):
                found[number] = likelihood
            bar.advance(len(chosen))
    return [found[number] for number in range(len(encoded))]


def _batch(judged: Judged, rows: Sequence[Tokens]) -> list[Likelihood]:
    """Pads on the right: earlier tokens do not see the padding."""
    import torch

    longest = max(len(row.ids) for row in rows)
    pad = judged.tokenizer.eos_token_id
    ids_BT = torch.tensor([row.ids + [pad] * (longest - len(row.ids)) for row in rows])
    learned_BT = torch.tensor([row.learned + [False] * (longest - len(row.learned)) for row in rows])[:, 1:]
    mask_BT = torch.tensor([[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in rows])
    device = judged.model.device
    logits_BTV: Any = judged.model(
        input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), use_cache=False
    ).logits[:, :-1]
    found = []
    for logits_TV, ids_T, learned_T in zip(logits_BTV, ids_BT[:, 1:].to(device), learned_BT.to(device), strict=True):
        nll_N = torch.nn.functional.cross_entropy(logits_TV[learned_T].float(), ids_T[learned_T], reduction="none")
        found.append(Likelihood(float(nll_N.double().sum()), len(nll_N)))
    return found
