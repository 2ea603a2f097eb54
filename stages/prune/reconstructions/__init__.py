"""Reconstructions: how the kept weights change, under the pruner's mask, to compensate for the pruned ones. A file
each, and a file in conf/reconstruction/.

A member defines `RECONSTRUCTION`. Its file is read when a run is planned, which must not import torch: it does so where
it computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from stages.kinds import Kinds
from stages.prune.pruners import Linears, Needs, Pruned

if TYPE_CHECKING:
    from torch import Tensor

    from stages.prune.spec import Reconstruction as Options


@runtime_checkable
class Reconstruction(Protocol):
    needs: Needs
    options: type[Options]
    """The section `prune.reconstruction` of the configuration."""

    def refine(self, dense: Sequence[Tensor], linears: Linears, found: Pruned, config: Any) -> Pruned:
        """Refines what the pruner `found`; `dense` are the weights `W_OI` before it. Counts of each mask stay, and what
        earlier masks prune stays pruned. Raises UserError."""


RECONSTRUCTIONS: Kinds[Reconstruction] = Kinds(
    "reconstruction", __name__, "RECONSTRUCTION", "prune.reconstruction.method", Reconstruction
)
