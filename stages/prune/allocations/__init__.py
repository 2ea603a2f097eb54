"""Allocations: how sparse each linear becomes, so that all together reach the level. A file each, and a file in
conf/allocation/.

A member defines `ALLOCATION`. Its file is read when a run is planned, which must not import torch: it does so where it
computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from stages.kinds import Kinds

if TYPE_CHECKING:
    from torch import Tensor

    from stages.prune.spec import Allocation as Options

Reads = Literal["shapes", "weights", "norms"]
"""Information that an allocation needs. norms: the weights of the linears, and the norm of each input over the
calibration tokens, by one pass through the model before anything is pruned."""


@dataclass(frozen=True)
class Prunable:
    """A linear as an allocation sees it."""

    shape: tuple[int, int]
    """(out, in)"""
    block: str
    """Name of its block: `model.layers.3`."""
    W_OI: Tensor | None = None
    """Weight; None if the allocation does not read weights."""
    norm_I: Tensor | None = None  # noqa: N815 (shape)
    """Input norms, fp32; None if the allocation does not read them."""

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]


@runtime_checkable
class Allocation(Protocol):
    reads: Reads
    options: type[Options]
    """The section `prune.allocation` of the configuration."""

    def share(self, linears: Mapping[str, Prunable], sparsity: float, config: Any) -> Mapping[str, float]:
        """Returns the sparsity in [0, 1) of each linear, in execution order, whose mean over all weights is `sparsity`.
        Raises UserError if there is no such allocation."""


ALLOCATIONS: Kinds[Allocation] = Kinds("allocation", __name__, "ALLOCATION", "prune.allocation.method", Allocation)
