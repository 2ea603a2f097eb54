"""What pruning costs: two forward passes over the calibration tokens, and Hessians that cost about one."""

from __future__ import annotations

from stages.cost import LIBRARIES, Setting, Workload
from stages.model_size import ModelSize
from stages.prune.pruners import PRUNERS


class PruneCost:
    def kind(self, load: Workload) -> str:
        return str(load.config.get("prune", {}).get("method", ""))

    def operations(self, load: Workload, parameters: float) -> float | None:
        if load.config["prune"]["method"] not in PRUNERS.names():
            return None  # of a package that is gone
        if PRUNERS.get(load.config["prune"]["method"]).needs == "nothing":
            return 200 * parameters
        return 6 * parameters * load.calibration_tokens if load.calibration else None

    def memory_bytes(self, load: Workload, size: ModelSize, setting: Setting) -> float:
        states = load.calibration_tokens * size.hidden * 4 * 2
        return LIBRARIES + size.parameters * (setting.weight_bytes + 1) + states

    def result_bytes(self, load: Workload, size: ModelSize, setting: Setting) -> float:
        return size.parameters * setting.weight_bytes + size.parameters / 8
