"""Estimates the cost of drawing calibration samples."""

from __future__ import annotations

from stages.cost import Unknown, Workload


class CalibrateCost(Unknown):
    def operations(self, load: Workload, parameters: float) -> float | None:
        return 1e6 * float(load.config["samples"])
