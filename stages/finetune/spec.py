"""Stage `finetune`: sparse fine-tuning with distillation. What the rest of the house knows of it; torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SerializeAsAny, model_validator

from stages.contracts import Checkpoint
from stages.finetune.cost import TrainingCost
from stages.finetune.early import check_early
from stages.options import Beta, LossWeight, Options, Precision, Seed, Sparsity
from stages.prune.spec import Prune
from stages.stage import Stage


class Training(Options):
    """One run of the optimizer, dense or sparse."""

    steps: int = Field(ge=0)
    """Optimizer steps. Give either steps or epochs; the other is 0."""
    epochs: float = Field(ge=0)
    sequence_length: int = Field(ge=2)
    """Tokens of a row; of an encoder-decoder's source and of its target, each. Longer ones are cut."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """adafactor: torch's, whose lr is relative to each matrix' root mean square and never above 1/sqrt(step)."""
    bf16_updates: Literal["fp32_master", "stochastic_rounding"] = "fp32_master"
    """How weights stored in bfloat16 take steps smaller than their spacing. fp32_master: training moves fp32 copies and
    rounds them. stochastic_rounding: each step is rounded up or down by chance, which takes 6 bytes a weight less; for
    precision=bf16 only."""
    batch_size: int = Field(ge=1)
    """Sequences of an optimizer step."""
    micro_batch_size: int = Field(ge=1)
    """Sequences of one forward pass; gradients accumulate up to batch_size."""
    group_by_length: bool = False
    """Sequences of like length in the same step: less padding, up to twice the speed where lengths differ much."""
    lr: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    decay: Literal["linear", "cosine", "constant"]
    weight_decay: float = Field(ge=0)
    betas: tuple[Beta, Beta]
    """adamw only."""
    clip_norm: float = Field(ge=0)
    """Gradients are scaled down to this norm; 0 leaves them alone."""
    precision: Precision
    """Of the forward and backward passes, of student and teacher. fp32: all in fp32, weights stored in bfloat16 too.
    bf16: matrix products in bf16, the rest in what the weights are stored in."""
    eval_every: int = Field(ge=0)
    """Validation loss every so many steps; 0: only at the end."""
    eval_windows: int = Field(ge=1)
    checkpoint_every: int = Field(ge=0)
    """Steps between checkpoints that a killed run resumes from; 0: none."""
    divergence: float = Field(gt=1)
    """Stop when the mean loss of the last 10 steps exceeds this multiple of where the loss began, and is at least 2
    (nats, times the loss weights) above it. A loss or a gradient that is not finite always stops."""
    activation_checkpointing: bool
    """Recompute activations in the backward pass: less memory, more time."""
    teacher_cache_gb: float = Field(ge=0)
    """Disk budget of cached teacher states (bf16); 0 runs the teacher on the fly. Over budget is an error."""
    seed: Seed
    """Of the order of the data, and of all that a step draws (dropout, SpecAugment, stochastic rounding). The k-th
    fine-tuning of a run (rung k) uses seed + k."""

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if self.steps > 0 and self.epochs > 0:
            raise ValueError("give steps or epochs and set the other to 0")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"batch_size={self.batch_size} is no multiple of micro_batch_size={self.micro_batch_size}")
        return self


class Distill(Options):
    """The loss: ce·CE + kd·KL + squarehead·sum of layer losses (docs in `stages.finetune.distill`)."""

    ce: LossWeight
    kd: LossWeight
    squarehead: LossWeight
    temperature: float = Field(ge=1e-3, le=1e3)
    eps: float = Field(ge=0, le=1)
    normalize: Literal["layer", "token"]
    """layer: the paper's ratio of two sums. token: a ratio for each token, then their mean (ours)."""
    skip_first: int = Field(ge=0)
    """Leave out the first tokens of a sequence, whose attention-sink norms dominate the sums (ours; 0: faithful)."""

    @model_validator(mode="after")
    def _some_loss(self) -> Distill:
        if self.ce == self.kd == self.squarehead == 0:
            raise ValueError("all loss weights are 0; set ce, kd or squarehead")
        return self


class CubicOptions(Options):
    """A cubic schedule inside fine-tuning, and the pruner that updates the masks."""

    prune: SerializeAsAny[Prune]
    initial: Sparsity
    final: Sparsity
    begin_step: int
    end_step: int
    update_every: int


class FinetuneOptions(Options):
    training: Training
    distill: Distill
    cubic: CubicOptions | None = None


IRRELEVANT = ("training.checkpoint_every", "training.divergence")
"""divergence only stops a run: with a higher one, the same run goes on from its last checkpoint."""
STAGE = Stage(
    "finetune",
    "4",
    FinetuneOptions,
    Checkpoint,
    irrelevant=IRRELEVANT,
    check_early=check_early,
    cost=TrainingCost(masked=True),
)
