"""SquareHead (arXiv 2310.06927): the normalised distance of hidden states to the teacher's, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from stages.finetune.spec import Distill

if TYPE_CHECKING:
    from torch import Tensor


class SquareHead:
    needs_teacher = True
    options = Distill

    def total(self, teacher: Iterable[Tensor], options: Distill) -> Tensor | int:
        """Returns the teacher's energy, or (normalize=token) the number of tokens."""
        import torch

        from stages.finetune import distill

        if options.normalize == "token":
            return sum(len(t_ND) for t_ND in teacher)
        return sum((distill.energy(t_ND) for t_ND in teacher), start=torch.zeros(()))

    def of_layer(self, student_ND: Tensor, teacher_ND: Tensor, total: Any, options: Distill) -> Tensor:
        from stages.finetune import distill

        if options.normalize == "token":
            return distill.squarehead_by_token(student_ND, teacher_ND, total, options.eps)
        return distill.squarehead(student_ND, teacher_ND, total, options.eps)


LOSS = SquareHead()
