"""A metric: the share of zeros."""

from __future__ import annotations

from stages.contracts import Log
from stages.evaluate.metrics import Judged, Measurement, MetricOptions


class Zeros:
    options = MetricOptions

    def check(self, options: MetricOptions, judged: Judged) -> None:
        pass

    def measure(self, options: MetricOptions, judged: Judged, log: Log) -> Measurement:
        weights = [w for name, w in judged.model.named_parameters() if name.endswith("proj.weight")]
        share = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
        return Measurement(share, None, True, {"kind": "share of zeros"}, unit="fraction")


METRIC = Zeros()
