"""Cross entropy with the labels: the task loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.finetune.spec import Distill

if TYPE_CHECKING:
    from torch import Tensor


class CrossEntropy:
    needs_teacher = False
    options = Distill

    def of_tokens(
        self, student_NV: Tensor, teacher_NV: Tensor | None, labels_N: Tensor, total: int, options: Distill
    ) -> Tensor:
        from stages.finetune import distill

        return distill.ce(student_NV, labels_N, total)


LOSS = CrossEntropy()
