"""Conjugate gradients on a fixed mask: the last step of ALPS (arXiv 2406.07831). Starts from the pruner's weights, and
the layer's error falls with every iteration. Its mathematics: `stages.prune.layerwise`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stages.prune.pruners import Linears, Needs, Pruned
from stages.prune.spec import LayerwiseOptions

if TYPE_CHECKING:
    from torch import Tensor


class ConjugateGradients:
    needs: Needs = "gram"
    options = LayerwiseOptions

    def refine(self, dense: Sequence[Tensor], linears: Linears, found: Pruned, config: LayerwiseOptions) -> Pruned:
        from stages.prune import layerwise

        assert linears.H_II is not None
        shared = layerwise.problem(linears.H_II, config.damping)
        weights = layerwise.solved(dense, found.weights, found.keeps, shared, config.iterations)
        return Pruned(weights, found.keeps, found.damping)


RECONSTRUCTION = ConjugateGradients()
