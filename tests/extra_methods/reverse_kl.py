"""A loss: KL from the student to the teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.finetune.losses import LossOptions

if TYPE_CHECKING:
    from torch import Tensor


class ReverseKL:
    needs_teacher = True
    options = LossOptions

    def of_tokens(
        self, student_NV: Tensor, teacher_NV: Tensor | None, labels_N: Tensor, total: int, options: LossOptions
    ) -> Tensor:
        from stages.finetune import distill

        assert teacher_NV is not None
        return distill.kd(teacher_NV, student_NV, 1.0, total)


LOSS = ReverseKL()
