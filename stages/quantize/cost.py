"""Estimates the cost of quantizing."""

from __future__ import annotations

from stages.cost import LIBRARIES, Cost, Setting, Workload
from stages.model_size import ModelSize


class QuantizeCost(Cost):
    def kind(self, load: Workload) -> str:
        return f"{load.config.get('smooth', 0) > 0} {load.config.get('skip_sensitive', 0) > 0}"

    def operations(self, load: Workload, parameters: float) -> float:
        return 500 * parameters

    def memory_bytes(self, load: Workload, size: ModelSize, setting: Setting) -> float:
        return LIBRARIES + 2 * size.parameters * setting.weight_bytes

    def result_bytes(self, load: Workload, size: ModelSize, setting: Setting) -> float:
        return size.parameters + size.vocabulary * size.hidden * 4
