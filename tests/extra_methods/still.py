"""A reconstruction: the weights stay as the pruner leaves them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stages.prune.pruners import Linears, Needs, Pruned
from stages.prune.spec import Reconstruction

if TYPE_CHECKING:
    from torch import Tensor


class Still:
    needs: Needs = "nothing"
    options = Reconstruction

    def refine(self, dense: Sequence[Tensor], linears: Linears, found: Pruned, config: Reconstruction) -> Pruned:
        return found


RECONSTRUCTION = Still()
