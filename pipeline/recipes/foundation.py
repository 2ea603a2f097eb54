"""Sparse pretraining, then a task (arXiv 2405.03594): prune the base, train it on a corpus with its masks fixed, step
by step; fine-tune that foundation for the task, with the dense base fine-tuned on the task as its teacher.

model -> corpus; (-> base) -> (prune_fK -> pretrain_fK)* = foundation -> (prune_k ->) finetune_k -> evaluate, quantize
-> evaluate_q, benchmark.  base_eval and foundation_eval say what the foundation lost of the base, by source of the
corpus. Nothing of a foundation depends on the task, so jobs of other tasks share it.
"""

from __future__ import annotations

from pipeline import steps
from pipeline.graph import Graph
from pipeline.schema import Config
from stages.contracts import UserError
from stages.schedule import rungs


def foundation(config: Config) -> Graph:
    """Builds the graph. The schedule continues above the foundation's sparsity: lower levels are left out, and at the
    foundation's own level the model is fine-tuned without pruning. Raises UserError if the job ends less sparse."""
    assert config.foundation, "the schema asks for it"
    level = config.foundation.sparsity
    _check(config, level)
    graph: Graph = {}
    data = steps.sources(graph, config)
    sparse = steps.foundation(graph, config, steps.base(graph, config))
    dense = steps.dense(graph, config, data)
    calibration = steps.calibrate(graph, config, data)
    targets = [target for target in rungs(config.schedule.levels, config.sparsity) if target >= level]
    sparse = steps.ladder(graph, config, targets, sparse, data, dense, calibration, start=level)
    steps.finish(graph, config, data, dense, sparse, calibration)
    return graph


def _check(config: Config, level: float) -> None:
    if config.sparsity < level:
        raise UserError(
            f"the foundation ends at {level:g}, and pruned weights stay pruned; expected at least that, or fewer "
            "steps in foundation.steps",
            "sparsity",
        )
    if config.schedule.kind == "cubic":
        raise UserError("a foundation is pruned further in steps; expected one_shot or ladder", "schedule")
    if config.finetune.release and config.sparsity > level:
        raise UserError(
            f"a released model is dense, so that pruning to {config.sparsity:g} would be lost; expected sparsity="
            f"{level:g}, the foundation's",
            "finetune.release",
        )


RECIPE = foundation
