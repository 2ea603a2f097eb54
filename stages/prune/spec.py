"""Stage `prune`: one pruning step. Torch-free description."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, get_args

from pydantic import Field, ModelWrapValidatorHandler, SerializeAsAny, field_validator, model_validator

from stages.contracts import Checkpoint, UserError
from stages.options import Options, Precision, Sparsity, regular_expressions
from stages.prune.allocations import ALLOCATIONS
from stages.prune.cost import PruneCost
from stages.prune.early import check_early
from stages.prune.pattern import parse_pattern
from stages.prune.pruners import PRUNERS, Needs
from stages.prune.reconstructions import RECONSTRUCTIONS
from stages.stage import MetricSpec, Stage


class Allocation(Options):
    """Options of all allocations.

    Validation returns the class that the chosen allocation names as its `options`.
    """

    method: Annotated[str, ALLOCATIONS] = "uniform"
    """A file of `stages/prune/allocations/`, or one that an installed package adds."""

    @model_validator(mode="wrap")
    @classmethod
    def _of_the_chosen_one(cls, value: Any, handler: ModelWrapValidatorHandler[Allocation]) -> Allocation:
        return ALLOCATIONS.validated(Allocation, cls, value, handler)


class Reconstruction(Options):
    """Options of all reconstructions.

    Validation returns the class that the chosen reconstruction names as its `options`.
    """

    method: Annotated[str, RECONSTRUCTIONS] = "none"
    """A file of `stages/prune/reconstructions/`, or one that an installed package adds."""

    @model_validator(mode="wrap")
    @classmethod
    def _of_the_chosen_one(cls, value: Any, handler: ModelWrapValidatorHandler[Reconstruction]) -> Reconstruction:
        return RECONSTRUCTIONS.validated(Reconstruction, cls, value, handler)


class LayerwiseOptions(Reconstruction):
    """Options of reconstructions that solve for a linear's weights by its Hessian."""

    iterations: int = Field(ge=1)
    """Steps of the solver."""
    damping: float = Field(gt=0)
    """Added to the Hessian's diagonal, relative to its mean: it keeps the weights near the dense ones."""


class Prune(Options):
    """Options of all pruners.

    A pruner may add its own: validation returns the class that it names as its `options`.
    """

    added: ClassVar[frozenset[str]] = frozenset({"allocation", "reconstruction"})

    method: Annotated[str, PRUNERS]
    """How weights are chosen: a file of `stages/prune/pruners/`, or a pruner that an installed package adds."""
    pattern: str
    """`unstructured`, or `N:M`: N weights KEPT of each M along the input (2:4, 4:8, 16:32, 16:64, ...)."""
    allocation: SerializeAsAny[Allocation] = Allocation()
    """How sparse each linear becomes (group `allocation`). Only for pattern=unstructured."""
    reconstruction: SerializeAsAny[Reconstruction] = Reconstruction()
    """How the kept weights compensate for the pruned ones, under the pruner's mask (group `reconstruction`)."""
    precision: Precision
    """Precision of the calibration forward passes. Hessians and weights are always fp32."""
    micro_batch_size: int = Field(ge=1)
    """Calibration samples of one forward pass."""
    skip: list[str]
    """Regular expressions of linears to leave dense (full match on the dotted name)."""

    @property
    def needs(self) -> Needs:
        """Returns the statistics of the linears' inputs that pruner, allocation and reconstruction together need."""
        allocated: Needs = "norms" if ALLOCATIONS.get(self.allocation.method).reads == "norms" else "nothing"
        rebuilt = RECONSTRUCTIONS.get(self.reconstruction.method).needs
        return max(PRUNERS.get(self.method).needs, allocated, rebuilt, key=get_args(Needs).index)

    @model_validator(mode="wrap")
    @classmethod
    def _of_the_chosen_pruner(cls, value: Any, handler: ModelWrapValidatorHandler[Prune]) -> Prune:
        return PRUNERS.validated(Prune, cls, value, handler)

    @field_validator("skip")
    @classmethod
    def _readable(cls, value: list[str]) -> list[str]:
        return regular_expressions(value)

    @field_validator("pattern")
    @classmethod
    def _keeps_some(cls, value: str) -> str:
        if value != "unstructured":
            keep, group = parse_pattern(value)
            if not 0 < keep < group:
                raise ValueError("expected N:M with 0 < N < M, which keeps N of each M weights")
        return value

    @model_validator(mode="after")
    def _allocates_unstructured(self) -> Prune:
        if self.allocation.method != "uniform" and self.pattern != "unstructured":
            raise ValueError(f"N:M is the same in all linears, got allocation={self.allocation.method}")
        return self


class HessianOptions(Prune):
    """Options of SparseGPT. Magnitude and Wanda accept and ignore them, which keeps their older results hits."""

    block_size: int = Field(ge=1)
    """Columns that SparseGPT prunes together, and over which unstructured sparsity is uniform."""
    damping: float = Field(gt=0)
    """Added to the Hessian's diagonal, relative to its mean."""
    max_damping: float = Field(gt=0)
    """A Hessian that is not positive definite gets 10 times the damping, noted in the record, up to this limit; beyond
    it the stage fails."""

    @model_validator(mode="after")
    def _damping_may_rise(self) -> HessianOptions:
        if self.max_damping < self.damping:
            raise UserError(f"{self.max_damping:g} lies below damping={self.damping:g}", "prune.max_damping")
        return self


class PruneOptions(Options):
    prune: SerializeAsAny[Prune]
    sparsity: Sparsity


STAGE = Stage(
    "prune",
    "2",
    PruneOptions,
    Checkpoint,
    check_early=check_early,
    cost=PruneCost(),
    metrics=(
        MetricSpec("sparsity", "fraction", headline=True),
        MetricSpec("model_sparsity", "fraction"),
        MetricSpec("mean_layer_error", "", False),
        MetricSpec("prunable_share", "fraction"),
    ),
    model="sparse",
    model_label="pruned",
    needs_baseline=True,
)
