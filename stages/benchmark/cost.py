"""Estimates the cost of a benchmark: every backend runs once in each round, on the dense and on the sparse model."""

from __future__ import annotations

from stages.benchmark.backends import BACKENDS
from stages.cost import DECODING, LIBRARIES, SMALL, Cost, Setting, Workload
from stages.model_size import ModelSize


class BenchmarkCost(Cost):
    def kind(self, load: Workload) -> str:
        """Returns the backends that it measures."""
        return " ".join(sorted({name.partition("_")[0] for name in load.config.get("backends", [])}))

    def operations(self, load: Workload, parameters: float) -> float:
        config = load.config
        passes = (config["rounds"] + config["warmup"]) * len(config["backends"]) * _models(load)
        return 2 * parameters * float(passes * (config["prompt_tokens"] + DECODING * config["new_tokens"]))

    def memory_bytes(self, load: Workload, size: ModelSize, setting: Setting) -> float:
        copies = sum(BACKENDS.get(name).weight_bytes for name in load.config["backends"])
        return LIBRARIES + _models(load) * size.parameters * copies

    def result_bytes(self, load: Workload, size: ModelSize, setting: Setting) -> float:
        return SMALL


def _models(load: Workload) -> int:
    return sum(role in load.inputs for role in ("dense", "sparse"))
