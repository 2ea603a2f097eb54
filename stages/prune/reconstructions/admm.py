"""ADMM on a fixed mask (arXiv 2401.02938): all weights of a linear compensate for the pruned ones, not only the columns
to the right as in SparseGPT. Its mathematics: `stages.prune.layerwise`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from stages.prune.pruners import Linears, Needs, Pruned
from stages.prune.spec import LayerwiseOptions

if TYPE_CHECKING:
    from torch import Tensor


class AdmmOptions(LayerwiseOptions):
    penalty: float = Field(gt=0)
    """Weight of the distance between the weights and their masked copy, for inputs of unit norm."""


class Admm:
    needs: Needs = "gram"
    options = AdmmOptions

    def refine(self, dense: Sequence[Tensor], linears: Linears, found: Pruned, config: AdmmOptions) -> Pruned:
        import torch

        from stages.prune import layerwise

        assert linears.H_II is not None
        shared = layerwise.problem(linears.H_II, config.damping)
        V0_OI = torch.cat([W_OI.float() for W_OI in dense]) * shared.scale_I
        V_OI = layerwise.admm(V0_OI, torch.cat(found.keeps), shared.A_II, config.penalty, config.iterations)
        weights = list(torch.split(V_OI / shared.scale_I, [len(W_OI) for W_OI in dense]))
        return Pruned(weights, found.keeps, found.damping)


RECONSTRUCTION = Admm()
