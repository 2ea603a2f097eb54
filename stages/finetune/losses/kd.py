"""Knowledge distillation: KL to the teacher's predictions at a temperature."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.finetune.spec import Distill

if TYPE_CHECKING:
    from torch import Tensor


class KnowledgeDistillation:
    needs_teacher = True
    options = Distill

    def of_tokens(
        self, student_NV: Tensor, teacher_NV: Tensor | None, labels_N: Tensor, total: int, options: Distill
    ) -> Tensor:
        from stages.finetune import distill

        assert teacher_NV is not None
        return distill.kd(student_NV, teacher_NV, options.temperature, total)


LOSS = KnowledgeDistillation()
