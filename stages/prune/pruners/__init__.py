"""Pruners: which weights of a linear are pruned, and how those that stay change. A file each, and a file in
conf/prune/.

A member defines `PRUNER`. Its file is read when a run is planned, which must not import torch: it does so where it
computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from stages.kinds import Kinds

if TYPE_CHECKING:
    from torch import Tensor

    from stages.prune.selection import Target
    from stages.prune.spec import Prune

Needs = Literal["nothing", "norms", "gram"]
"""Statistics that a pruner needs of a linear's inputs over the calibration tokens. nothing: it needs no calibration.
norms: the norm of each input. gram: their products, `H = (2/n) Σ x xᵀ`. The walk through the model gathers H for both,
since the reported error needs it; the norms are the root of its diagonal."""


@dataclass(frozen=True)
class Linears:
    """Linears that see the same input, as passed to a pruner."""

    names: Sequence[str]
    """Dotted names, in execution order."""
    weights: Sequence[Tensor]
    """`W_OI` of each: a copy, which the pruner may change."""
    kept: Sequence[Tensor | None]
    """`keep_OI` of each: weights that earlier masks prune (False) stay pruned and count."""
    goals: Sequence[Target]
    H_II: Tensor | None
    """fp32; its upper triangle holds the mean `(2/n) Σ x xᵀ`. None for pruners that need nothing."""

    @property
    def input_norms(self) -> Tensor:
        """Returns `norm_I` of each input over the calibration tokens, at a scale that all inputs have in common."""
        assert self.H_II is not None
        return self.H_II.diagonal().sqrt()


@dataclass(frozen=True)
class Pruned:
    """Pruned weights of some linears, in the order in which they were given."""

    weights: list[Tensor]
    """`W_OI`, 0 where `keeps` is False."""
    keeps: list[Tensor]
    """`keep_OI`, bool: True where a weight is kept."""
    damping: float | None = None
    """Relative damping that the Hessian needed, for pruners that invert it."""


def zeroed(linears: Linears, keeps: list[Tensor]) -> Pruned:
    """Returns the result of a pruner without compensation: the weights unchanged, 0 where `keeps` is False."""
    return Pruned([W.masked_fill_(~keep, 0) for W, keep in zip(linears.weights, keeps, strict=True)], keeps)


@runtime_checkable
class Pruner(Protocol):
    needs: Needs
    options: type[Prune]
    """The section `prune` of the configuration, with the options of this pruner."""

    def count(self, rows: int, columns: int, sparsity: float, config: Any) -> int:
        """Returns how many weights of a dense (rows x columns) linear it prunes, unstructured: its promise, which the
        stage asserts. `config` is of its own `options`."""

    def prune(self, linears: Linears, config: Any) -> Pruned:
        """Prunes the linears. Raises UserError for weights or inputs that cannot be pruned; the caller names the
        linears."""


PRUNERS: Kinds[Pruner] = Kinds("pruner", __name__, "PRUNER", "prune.method", Pruner)
