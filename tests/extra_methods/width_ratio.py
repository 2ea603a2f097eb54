"""A loss of hidden states: the squared error, over that of a state of ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from stages.finetune.losses import LossOptions

if TYPE_CHECKING:
    from torch import Tensor


class WidthRatio:
    needs_teacher = True
    options = LossOptions

    def total(self, teacher: Iterable[Tensor], options: LossOptions) -> int:
        return sum(t_ND.numel() for t_ND in teacher)

    def of_layer(self, student_ND: Tensor, teacher_ND: Tensor, total: int, options: LossOptions) -> Tensor:
        return (student_ND.float() - teacher_ND.float()).square().sum() / total


LOSS = WidthRatio()
