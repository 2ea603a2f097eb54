"""Sparse fine-tuning for a task (arXiv 2310.06927): prune the dense model step by step, fine-tune after each step.

model, data (-> prepare, for encoder-decoders) -> dense -> {dense_eval, calibrate} ->
(prune_k -> finetune_k, teacher = dense)* -> evaluate, quantize -> evaluate_q, benchmark.  Levels are nodes, so jobs
with other targets share the rungs below.
"""

from __future__ import annotations

from pipeline import steps
from pipeline.graph import Graph
from pipeline.schema import Config
from stages.schedule import rungs


def task_pruning(config: Config) -> Graph:
    """Builds the graph."""
    graph: Graph = {}
    data = steps.sources(graph, config)
    dense = steps.dense(graph, config, data)
    calibration = steps.calibrate(graph, config, data)
    sparse = dense
    if config.schedule.kind == "cubic":
        start = config.schedule.initial
        if start:
            sparse = steps.prune(graph, config, f"prune_{steps.level_name(config, start)}", dense, start, calibration)
        level = steps.level_name(config, config.sparsity)
        sparse = steps.finetune(graph, config, level, 1, sparse, data, dense, steps.cubic(config), calibration)
    elif config.sparsity > 0:
        targets = rungs(config.schedule.levels, config.sparsity)
        sparse = steps.ladder(graph, config, targets, sparse, data, dense, calibration)
    steps.finish(graph, config, data, dense, sparse, calibration)
    return graph


RECIPE = task_pruning
