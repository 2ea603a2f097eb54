"""Estimates the cost of drawing calibration samples."""

from __future__ import annotations

from stages.cost import Cost, Workload


class CalibrateCost(Cost):
    def operations(self, load: Workload, parameters: float) -> float | None:
        return 1e6 * float(load.config["samples"])
