"""Stage `dense`: fine-tuning before pruning. Torch-free description."""

from __future__ import annotations

from typing import ClassVar

from pydantic import model_validator

from stages.contracts import Checkpoint
from stages.dense.early import check_early
from stages.finetune.cost import TrainingCost
from stages.finetune.spec import IRRELEVANT, TRAINING_METRICS, Distill, Training
from stages.options import Options
from stages.stage import Stage


class Dense(Options):
    """Fine-tuning before pruning. Its result is the teacher, the starting point and the baseline."""

    skip: bool
    """Train nothing before pruning: the pretrained model itself is the teacher, the starting point and the baseline."""
    training: Training

    @model_validator(mode="after")
    def _has_no_teacher(self) -> Dense:
        if self.training.teacher_cache_gb:
            raise ValueError("training.teacher_cache_gb is for fine-tuning with a teacher (finetune.teacher_cache_gb)")
        return self


class DenseOptions(Options):
    added: ClassVar[frozenset[str]] = frozenset({"option"})

    training: Training
    distill: Distill
    option: str = "dense.training"
    """Section in which users find `training`, for messages."""


STAGE = Stage(
    "dense",
    "4",
    DenseOptions,
    Checkpoint,
    irrelevant=IRRELEVANT,
    check_early=check_early,
    cost=TrainingCost(masked=False),
    metrics=TRAINING_METRICS,
    model="dense",
)
