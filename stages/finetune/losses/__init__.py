"""Losses of fine-tuning: each a term of the weighted sum that an optimizer step minimises. A file each.

A member defines `LOSS`. Its file is read when a run is planned, which must not import torch: it does so where it
computes. CE, KD and SquareHead have weights of their own in the section `distill`; all others are items of
`distill.losses`, with their weights and their own options.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Protocol, runtime_checkable

from stages.kinds import Kinds
from stages.options import LossWeight, Options

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class PredictionLoss(Protocol):
    """A loss of the logits of N label tokens, some hundreds at a time."""

    needs_teacher: bool
    options: type[Options]
    """An item of `distill.losses` (derived from `LossOptions`), or the section `distill`."""

    def of_tokens(
        self, student_NV: Tensor, teacher_NV: Tensor | None, labels_N: Tensor, total: int, options: Any
    ) -> Tensor:
        """Returns the loss summed over these tokens and divided by `total`, the label tokens of the whole step.
        `teacher_NV` is given to losses that need a teacher."""


@runtime_checkable
class FeatureLoss(Protocol):
    """A loss of the hidden states of each layer, at the tokens that the family compares. It always needs a teacher."""

    needs_teacher: bool
    options: type[Options]

    def total(self, teacher: Iterable[Tensor], options: Any) -> Tensor | int:
        """Returns the divisor of one layer's sum, from the teacher's `t_ND` of each micro-batch of the step."""

    def of_layer(self, student_ND: Tensor, teacher_ND: Tensor, total: Any, options: Any) -> Tensor:
        """Returns the loss of one layer and one micro-batch, divided by the `total` of the step."""


Loss = PredictionLoss | FeatureLoss
LOSSES: Kinds[Loss] = Kinds("loss", __name__, "LOSS", "distill.losses", Loss)


class LossOptions(Options):
    """Options of an item of `distill.losses`. A loss may add its own, each with a default."""

    name: Annotated[str, LOSSES]
    """Name of the loss: a file of `stages/finetune/losses/`, or one that an installed package adds. ce, kd and
    squarehead have weights of their own instead."""
    weight: LossWeight = 1.0
    """Weight of the loss in the sum."""


@dataclass(frozen=True)
class Term:
    """A loss with its weight in the sum."""

    name: str
    weight: float
    loss: Loss
    options: Any
    """Options of the loss's own class `options`."""
    option: str
    """Option that sets its weight: `distill.kd`."""
