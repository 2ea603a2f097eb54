"""One-shot pruning: the dense model is pruned to the level in one step and not trained afterwards.

It is the baseline of all sparse fine-tuning and shows what a pruner alone is worth.
"""

from __future__ import annotations

from pipeline import steps
from pipeline.graph import Graph
from pipeline.schema import Config
from stages.contracts import UserError


def one_shot(config: Config) -> Graph:
    """Builds the graph. Raises UserError for options without a meaning here: a schedule, and a level of 0."""
    if config.schedule.kind != "one_shot":
        raise UserError(f"recipe=one_shot prunes in one step, got schedule={config.schedule.kind}", "schedule")
    if not config.sparsity:
        raise UserError("recipe=one_shot needs a sparsity above 0; without one, recipe=dense", "sparsity")
    graph: Graph = {}
    data = steps.sources(graph, config)
    dense = steps.dense(graph, config, data)
    calibration = steps.calibrate(graph, config, data)
    level = steps.level_name(config, config.sparsity)
    sparse = steps.prune(graph, config, f"prune_{level}", dense, config.sparsity, calibration)
    steps.evaluate(graph, config, "evaluate", sparse, data)
    steps.deploy(graph, config, data, dense, sparse, calibration)
    return graph


RECIPE = one_shot
