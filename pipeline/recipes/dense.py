"""The dense model alone: fine-tuned, evaluated, quantized and benchmarked, with nothing pruned."""

from __future__ import annotations

from pipeline import steps
from pipeline.graph import Graph
from pipeline.schema import Config


def dense(config: Config) -> Graph:
    """Builds the graph. `sparsity` and `schedule` have no effect, so that a sweep may include this recipe beside
    others."""
    config = config.model_copy(update={"sparsity": 0.0})
    graph: Graph = {}
    data = steps.sources(graph, config)
    model = steps.dense(graph, config, data)
    steps.deploy(graph, config, data, model, model, steps.calibrate(graph, config, data))
    return graph


RECIPE = dense
