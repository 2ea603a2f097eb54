"""What drawing calibration samples costs."""

from __future__ import annotations

from stages.cost import Unknown, Workload


class CalibrateCost(Unknown):
    def operations(self, load: Workload, parameters: float) -> float | None:
        return 1e6 * float(load.config["samples"])
