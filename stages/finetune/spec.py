"""Stage `finetune`: sparse fine-tuning with distillation. Torch-free description."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from stages.contracts import Checkpoint, UserError
from stages.finetune.cost import TrainingCost
from stages.finetune.early import check_early
from stages.finetune.losses import LOSSES, FeatureLoss, LossOptions, Term
from stages.options import Beta, LossWeight, Options, Precision, Seed, Sparsity
from stages.prune.spec import Prune
from stages.stage import SPARSITIES, MetricSpec, Stage

DECAY_FRACTION = 0.2
"""Default share of the steps over which decay=wsd falls."""


class Training(Options):
    """One run of the optimizer, dense or sparse."""

    added: ClassVar[frozenset[str]] = frozenset(
        {"tokens", "decay_fraction", "final_lr_fraction", "documents", "release"}
    )

    steps: int = Field(ge=0)
    """Number of optimizer steps. Give one of steps, epochs and tokens; the others are 0."""
    epochs: float = Field(ge=0)
    """Passes over the training split; fractions are allowed. Give one of steps, epochs and tokens; the others are 0."""
    tokens: int = Field(0, ge=0)
    """Tokens to train on, without padding; the last step may go beyond by less than a step. For decoder-only models.
    Give one of steps, epochs and tokens; the others are 0."""
    sequence_length: int = Field(ge=2)
    """Tokens of a row; for an encoder-decoder, of the source and of the target each. Longer ones are cut."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """adafactor is torch's, whose lr is relative to each matrix' root mean square and never above 1/sqrt(step)."""
    bf16_updates: Literal["fp32_master", "stochastic_rounding"] = "fp32_master"
    """How weights stored in bfloat16 take steps smaller than their spacing. fp32_master: training updates fp32 copies
    and rounds them. stochastic_rounding: each step is rounded up or down by chance, which takes 6 bytes less for each
    weight; it needs precision=bf16."""
    batch_size: int = Field(ge=1)
    """Sequences of an optimizer step."""
    micro_batch_size: int = Field(ge=1)
    """Sequences of one forward pass; gradients accumulate up to batch_size."""
    group_by_length: bool = False
    """Put sequences of similar length into the same step: less padding, up to twice the speed where lengths differ
    much."""
    lr: float = Field(gt=0)
    """Peak learning rate, reached after warmup_steps."""
    warmup_steps: int = Field(ge=0)
    """The learning rate rises linearly over this many steps."""
    decay: Literal["linear", "cosine", "constant", "wsd"]
    """How the learning rate falls after the warmup: linear and cosine all the way to the end, wsd (warmup, stable,
    decay) linearly over the last part, constant not at all."""
    decay_fraction: float = Field(DECAY_FRACTION, gt=0, le=1)
    """decay=wsd: share of the steps over which the learning rate falls, at the end."""
    final_lr_fraction: float = Field(0.0, ge=0, le=1)
    """Where the learning rate ends, as a fraction of lr."""
    weight_decay: float = Field(ge=0)
    """Weight decay of matrices; norms and biases have none."""
    betas: tuple[Beta, Beta]
    """AdamW's decay rates of the running means of the gradient and of its square. Adafactor does not read them."""
    clip_norm: float = Field(ge=0)
    """Gradients are scaled down to this norm; 0 turns clipping off."""
    precision: Precision
    """Precision of the forward and backward passes of student and teacher. fp32: everything is computed in fp32, also
    where weights are stored in bfloat16. bf16: matrix products are computed in bf16, the rest in the precision of the
    stored weights."""
    eval_every: int = Field(ge=0)
    """Steps between two measurements of the validation loss; 0 measures it only at the end."""
    eval_windows: int = Field(ge=1)
    """Rows of the validation split that the validation loss is measured on."""
    checkpoint_every: int = Field(ge=0)
    """Steps between checkpoints that a killed run resumes from; 0: none."""
    divergence: float = Field(gt=1)
    """Training stops when the mean loss of the last 10 steps exceeds this multiple of the loss at the start and is at
    least 2 (nats, times the loss weights) above it. A loss or gradient that is not finite always stops it."""
    documents: Literal["join", "separate"] = "join"
    """For a packed corpus: whether documents that share a row are one text to the model, or attention and positions
    restart with each."""
    release: bool = False
    """Drop the masks of a sparse model before training, so that all its weights are trained: sparse pretraining, dense
    fine-tuning (arXiv 2303.10464)."""
    activation_checkpointing: bool
    """Recompute activations in the backward pass: less memory, more time."""
    teacher_cache_gb: float = Field(ge=0)
    """Disk budget of cached teacher states (bf16); 0 runs the teacher on the fly. Over budget is an error."""
    seed: Seed
    """Seed of the order of the data and of all random draws of a step (dropout, SpecAugment, stochastic rounding). The
    k-th fine-tuning of a run (rung k) uses seed + k."""

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if sum(budget > 0 for budget in (self.steps, self.epochs, self.tokens)) > 1:
            raise ValueError("give one of steps, epochs and tokens, and set the others to 0")
        if self.decay == "constant" and self.final_lr_fraction:
            raise ValueError("a constant learning rate ends where it is; expected final_lr_fraction=0")
        if self.decay != "wsd" and self.decay_fraction != DECAY_FRACTION:
            raise ValueError(f"decay_fraction belongs to decay=wsd, not to {self.decay}")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of micro_batch_size={self.micro_batch_size}"
            )
        return self

    @property
    def is_none(self) -> bool:
        """Returns whether there is nothing to train."""
        return not (self.steps or self.epochs or self.tokens)


def decay_steps(steps: int, training: Training) -> int:
    """Returns the last steps of decay=wsd, over which the learning rate falls; none before the warm-up has ended."""
    return min(round(training.decay_fraction * steps), steps - training.warmup_steps)


def stable_steps(training: Training) -> int:
    """Returns for decay=wsd and a budget of tokens in rows without padding the steps before the learning rate falls."""
    steps = math.ceil(training.tokens / (training.batch_size * training.sequence_length))
    return steps - decay_steps(steps, training)


def _of_the_named_losses(value: Any) -> Any:
    """Validates the options of each further loss by that loss's own options; a name alone means its defaults."""
    if not isinstance(value, list | tuple):
        return value
    given = [{"name": item} if isinstance(item, str) else item for item in value]
    for item in given:
        if isinstance(item, dict) and item.get("name") in OWN_WEIGHTS:
            raise ValueError(f"{item['name']} has a weight of its own, distill.{item['name']}")
    return [
        LOSSES.get(item["name"]).options.model_validate(item) if isinstance(item, dict) and "name" in item else item
        for item in given
    ]


OWN_WEIGHTS = ("ce", "kd", "squarehead")
"""Losses whose weights and options are options of `distill`."""


class Distill(Options):
    """The loss: ce·CE + kd·KL + squarehead·sum of layer losses (`stages/finetune/distill.py`), and further `losses`."""

    added: ClassVar[frozenset[str]] = frozenset({"losses"})

    ce: LossWeight
    """Weight of the task loss, the cross-entropy of the next token."""
    kd: LossWeight
    """Weight of the KL divergence from the teacher's output distribution."""
    squarehead: LossWeight
    """Weight of the SquareHead loss: the normalised squared error of each layer's output, summed over the layers."""
    temperature: float = Field(ge=1e-3, le=1e3)
    """Softmax temperature of student and teacher in the KL divergence."""
    eps: float = Field(ge=0, le=1)
    """Added to the denominator of each layer's normalised error."""
    normalize: Literal["layer", "token"]
    """How a layer's error is normalised. layer: the paper's ratio of two sums. token: a ratio for each token, then
    their mean (not in the paper)."""
    skip_first: int = Field(ge=0)
    """Leave the first tokens of a sequence out of the layer losses: attention sinks give them norms that dominate the
    sums. 0 is the paper's loss."""
    losses: Annotated[list[SerializeAsAny[LossOptions]], BeforeValidator(_of_the_named_losses)] = Field([])
    """Further losses by name (files of `stages/finetune/losses/`, or what installed packages add), with weights and
    options of their own: `[{name: reverse_kl, weight: 0.5}]`."""

    @model_validator(mode="after")
    def _some_loss(self) -> Distill:
        names = [item.name for item in self.losses]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{twice[0]} stands in losses twice; give it one weight")
        if not self.terms:
            raise ValueError("all loss weights are 0; set ce, kd or squarehead")
        return self

    @property
    def terms(self) -> list[Term]:
        """Returns the losses with a nonzero weight."""
        own = [Term(name, getattr(self, name), LOSSES.get(name), self, f"distill.{name}") for name in OWN_WEIGHTS]
        further = [Term(item.name, item.weight, LOSSES.get(item.name), item, "distill.losses") for item in self.losses]
        return [term for term in (*own, *further) if term.weight]

    @property
    def needs_teacher(self) -> bool:
        return any(term.loss.needs_teacher for term in self.terms)

    @property
    def feature_terms(self) -> list[Term]:
        """Returns the losses that read the hidden states of all layers."""
        return [term for term in self.terms if isinstance(term.loss, FeatureLoss)]


class CubicOptions(Options):
    """A cubic schedule inside fine-tuning, and the pruner that updates the masks."""

    prune: SerializeAsAny[Prune]
    initial: Sparsity
    final: Sparsity
    begin_step: int
    end_step: int
    update_every: int


class FinetuneOptions(Options):
    added: ClassVar[frozenset[str]] = frozenset({"option", "continues", "keeps_state"})

    training: Training
    distill: Distill
    option: str = "finetune"
    """Section in which users find `training`, for messages."""
    continues: bool = False
    """Continue after the last step of the training that made `model`, as if that had not ended there."""
    keeps_state: bool = False
    """Keep what another training needs to continue after the last step."""
    cubic: CubicOptions | None = None

    @model_validator(mode="after")
    def _leaves_tokens(self) -> FinetuneOptions:
        if self.distill.feature_terms and self.distill.skip_first >= self.training.sequence_length:
            raise UserError(
                f"would skip all {self.training.sequence_length} tokens of a sequence (finetune.sequence_length)",
                "distill.skip_first",
            )
        if self.training.release and self.cubic:
            raise UserError("a cubic schedule prunes while it trains; expected false", "finetune.release")
        return self


IRRELEVANT = ("training.checkpoint_every", "training.divergence", "option")
"""divergence only stops a run: with a higher one, the same run continues from its last checkpoint."""
TRAINING_METRICS = (
    MetricSpec("validation_loss", "nats", False, headline=True),
    MetricSpec("train_loss", "nats", False),
    MetricSpec("steps"),
    MetricSpec("tokens", "tokens"),
    MetricSpec("tokens_per_second", "tokens/s", True),
    *SPARSITIES,
)
STAGE = Stage(
    "finetune",
    "4",
    FinetuneOptions,
    Checkpoint,
    irrelevant=IRRELEVANT,
    check_early=check_early,
    cost=TrainingCost(masked=True),
    metrics=TRAINING_METRICS,
    model="sparse",
    model_label="fine-tuned",
    needs_baseline=True,
)
