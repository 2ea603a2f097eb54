"""Stage `reinitialize`: random weights under a model's masks. Torch-free description."""

from __future__ import annotations

from stages.contracts import Checkpoint
from stages.options import Options, Seed
from stages.stage import MetricSpec, Stage


class ReinitializeOptions(Options):
    seed: Seed


STAGE = Stage(
    "reinitialize",
    "1",
    ReinitializeOptions,
    Checkpoint,
    metrics=(MetricSpec("sparsity", "fraction", headline=True), MetricSpec("model_sparsity", "fraction")),
    model="sparse",
)
