"""Estimates the cost of pruning: two forward passes over the calibration tokens, and Hessians that cost about one."""

from __future__ import annotations

from stages.cost import LIBRARIES, Cost, Setting, Workload
from stages.model_size import ModelSize
from stages.prune.pruners import PRUNERS
from stages.prune.reconstructions import RECONSTRUCTIONS

HESSIAN_BYTES = 4 << 30
"""Limit of the Hessians that are gathered in one pass over a block: with many experts, all of them would not fit."""
FACTOR_COPIES = 3
"""Copies of a Hessian while it is factored: damped, factored, and that flipped back."""


class PruneCost(Cost):
    def kind(self, load: Workload) -> str:
        prune = load.config.get("prune", {})
        return " ".join(filter(None, (prune.get("method", ""), prune.get("reconstruction", {}).get("method", ""))))

    def on_gpu(self, load: Workload) -> bool:
        return True

    def operations(self, load: Workload, parameters: float) -> float | None:
        prune = load.config["prune"]
        reconstruction = prune.get("reconstruction", {}).get("method", "none")
        if prune["method"] not in PRUNERS.names() or reconstruction not in RECONSTRUCTIONS.names():
            return None  # of a package that is gone
        if PRUNERS.get(prune["method"]).needs == RECONSTRUCTIONS.get(reconstruction).needs == "nothing":
            return 200 * parameters
        return 6 * parameters * load.calibration_tokens if load.calibration else None

    def memory_bytes(self, load: Workload, size: ModelSize, setting: Setting) -> float:
        states = load.calibration_tokens * size.hidden * 4 * 2
        return LIBRARIES + size.parameters * (setting.weight_bytes + 1) + states + _hessian_bytes(load, size)

    def result_bytes(self, load: Workload, size: ModelSize, setting: Setting) -> float:
        return size.parameters * setting.weight_bytes + size.parameters / 8


def _hessian_bytes(load: Workload, size: ModelSize) -> float:
    """Returns the bytes held at once: the Hessians of a block, or as many as one pass gathers, and the memory for
    factoring the largest."""
    method = load.config["prune"]["method"]
    if method not in PRUNERS.names() or PRUNERS.get(method).needs == "nothing":
        return 0.0
    gathered = max(min(size.gram_bytes, HESSIAN_BYTES), size.largest_gram_bytes)
    return gathered + (FACTOR_COPIES * size.largest_gram_bytes if PRUNERS.get(method).needs == "gram" else 0.0)
