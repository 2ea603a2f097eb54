"""Computes the loss of an optimizer step and its gradient, micro-batch by micro-batch.

The head is run over a few hundred label tokens at a time, and its backward pass follows at once: the logits of a large
vocabulary never exist whole. Totals (label tokens, the teacher's energies) are those of the whole step, so that the
micro-batch size does not change the result (`stages.finetune.distill`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stages.families import Batch, Family, Rows
from stages.finetune import batches, distill
from stages.finetune.losses import FeatureLoss, PredictionLoss, Term
from stages.finetune.spec import Distill
from stages.precision import autocast

LOGITS_AT_ONCE = 1 << 24
"""Elements of logits at once: 64 MB of fp32 for each of the few tensors of that size."""


class Distiller(Protocol):
    """A teacher, live or cached."""

    head: nn.Module

    def states(self, rows_B: Tensor, batch: Batch) -> list[Tensor]: ...


@dataclass(frozen=True)
class Objective:
    """The loss to minimise. `teacher` is given if a loss needs one."""

    family: Family
    weights: Distill
    precision: str
    teacher: Distiller | None

    def backward(self, model: nn.Module, head: nn.Module, micro: Sequence[tuple[Tensor, Batch]]) -> dict[str, Tensor]:
        """Adds the gradient of the step to the parameters' `.grad`. Returns `loss` and each term with a weight.

        `micro` are the step's micro-batches with their row numbers. The teacher's states of all of them are held until
        the step ends, since the totals of SquareHead need them all.
        """
        # the weights are cast once for all micro-batches
        with autocast(self.precision, next(model.parameters()).device):
            return self._backward(model, head, micro)

    def _backward(self, model: nn.Module, head: nn.Module, micro: Sequence[tuple[Tensor, Batch]]) -> dict[str, Tensor]:
        skip = self.weights.skip_first
        feature_masks = [distill.feature_tokens(self.family, model, batch, skip) for _, batch in micro]
        taught = [self._taught(rows_B, batch) for rows_B, batch in micro]
        num_labels = sum(count_labels(self.family, batch) for _, batch in micro)
        totals = {term.name: _totals(term, taught, feature_masks) for term in self._features}
        zero = torch.zeros((), device=next(model.parameters()).device)
        found = {term.name: zero.clone() for term in self._terms}
        for (_, batch), states, tokens in zip(micro, taught, feature_masks, strict=True):
            student = self._student(model, batch)
            roots: list[Tensor] = []
            gradients: list[Tensor | None] = []
            for term in self._features:
                feature = _features(term, student, states, tokens, totals[term.name])
                found[term.name] += feature.detach()
                roots.append(term.weight * feature)
                gradients.append(None)
            if self._predictions:
                h_ND, labels_N = distill.label_tokens(self.family, student[-1], batch["labels"])
                t_ND = None
                if any(term.loss.needs_teacher for term in self._predictions):
                    t_ND = distill.label_tokens(self.family, states[-1], batch["labels"])[0]
                roots.append(h_ND)
                gradients.append(self._of_predictions(head, h_ND, labels_N, t_ND, num_labels, found))
            torch.autograd.backward(roots, gradients)
        return {"loss": distill.total(self._weights, found)} | found

    @cached_property
    def _terms(self) -> list[Term]:
        return self.weights.terms

    @cached_property
    def _features(self) -> list[Term]:
        return self.weights.feature_terms

    @cached_property
    def _predictions(self) -> list[Term]:
        return [term for term in self._terms if isinstance(term.loss, PredictionLoss)]

    @cached_property
    def _weights(self) -> dict[str, float]:
        return {term.name: term.weight for term in self._terms}

    def _taught(self, rows_B: Tensor, batch: Batch) -> list[Tensor]:
        """Returns the teacher's states that the losses read: all layers, the last one, or none."""
        return self.teacher.states(rows_B, batch) if self.teacher else []

    def _student(self, model: nn.Module, batch: Batch) -> list[Tensor]:
        if self._features:
            return self.family.states(model, batch)
        return [self.family.hidden(model, batch)]

    def _of_predictions(
        self, head: nn.Module, h_ND: Tensor, labels_N: Tensor, t_ND: Tensor | None, total: int, found: dict[str, Tensor]
    ) -> Tensor:
        """Computes CE, KD and similar losses: adds their gradient to the head's parameters and returns that of
        `h_ND`."""
        leaf_ND = h_ND.detach().requires_grad_()
        for part in chunks(head, len(labels_N)):
            logits_NV, taught_NV = head(leaf_ND[part]), None
            if t_ND is not None and self.teacher is not None:
                with torch.no_grad():
                    taught_NV = self.teacher.head(t_ND[part].to(h_ND.dtype))
            terms = {
                term.name: term.loss.of_tokens(logits_NV, taught_NV, labels_N[part], total, term.options)
                for term in self._terms
                if isinstance(term.loss, PredictionLoss)
            }
            torch.autograd.backward(distill.total(self._weights, terms))
            for name, value in terms.items():
                found[name] += value.detach()
        return leaf_ND.grad if leaf_ND.grad is not None else torch.zeros_like(leaf_ND)


def _totals(
    term: Term, taught: Sequence[Sequence[Tensor]], feature_masks: Sequence[Sequence[Tensor | None]]
) -> list[Tensor | int]:
    """Returns the divisor of a feature loss for each layer, over the whole step."""
    loss = term.loss
    assert isinstance(loss, FeatureLoss)
    layers = zip(zip(*taught, strict=True), zip(*feature_masks, strict=True), strict=True)
    return [
        loss.total(
            (_at(h_BTD, tokens_N) for h_BTD, tokens_N in zip(states, tokens, strict=True) if tokens_N is not None),
            term.options,
        )
        for states, tokens in layers
    ]


def _features(
    term: Term,
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    tokens: Sequence[Tensor | None],
    totals: Sequence[Tensor | int],
) -> Tensor:
    """Returns this micro-batch's share of a feature loss, summed over layers."""
    loss = term.loss
    assert isinstance(loss, FeatureLoss)

    def of_layer(s_BTD: Tensor, t_BTD: Tensor, tokens_N: Tensor, total: Tensor | int) -> Tensor:
        return loss.of_layer(_at(s_BTD, tokens_N), _at(t_BTD, tokens_N), total, term.options)

    # recomputed when needed, so that no layer's fp32 copies or selected tokens wait for the backward pass
    return torch.stack(
        [
            checkpoint(of_layer, s_BTD, t_BTD, tokens_N, total, use_reentrant=False, preserve_rng_state=False)
            for s_BTD, t_BTD, tokens_N, total in zip(student, teacher, tokens, totals, strict=True)
            if tokens_N is not None
        ]
    ).sum()


@torch.no_grad()
def validation_loss(
    model: nn.Module, head: nn.Module, family: Family, rows: Rows, count: int, size: int, precision: str
) -> float:
    """Returns the mean cross entropy (nats) over the label tokens of the first `count` rows, in eval mode; `size` rows
    at a time."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    loss, num_labels = torch.zeros((), dtype=torch.float64), 0
    for _, batch in batches.micro_batches(rows, torch.arange(min(count, len(rows))), size, device):
        with autocast(precision, device):
            h_ND, labels_N = distill.label_tokens(family, family.hidden(model, batch), batch["labels"])
        for part in chunks(head, len(labels_N)):
            with autocast(precision, device):
                logits_NV = head(h_ND[part])
            loss += distill.ce(logits_NV, labels_N[part], 1).cpu()
        num_labels += len(labels_N)
    model.train(was_training)
    return float(loss / num_labels)


def count_labels(family: Family, batch: Batch) -> int:
    labels_BT = batch["labels"]
    return int((family.logits_and_labels(labels_BT[..., None], labels_BT)[1] >= 0).sum())


def chunks(head: nn.Module, num_tokens: int) -> list[slice]:
    """Yields token ranges whose logits fit `LOGITS_AT_ONCE`, of nearly equal size."""
    vocabulary = next(p for p in head.parameters()).shape[0]
    count = max(1, -(-num_tokens * vocabulary // LOGITS_AT_ONCE))
    size = max(1, -(-num_tokens // count))
    return [slice(at, at + size) for at in range(0, num_tokens, size)]


def _at(h_BTD: Tensor, tokens_N: Tensor) -> Tensor:
    """Returns `h_ND` of some tokens; all of them without a copy."""
    h_ND = h_BTD.flatten(0, 1)
    return h_ND if len(tokens_N) == len(h_ND) else h_ND.index_select(0, tokens_N)
