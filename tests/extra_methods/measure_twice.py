"""A recipe: task pruning, and a second look at the dense model by a stage of this package."""

from __future__ import annotations

from pipeline.graph import Graph, add
from pipeline.recipes.task_pruning import task_pruning
from pipeline.schema import Config

from .count_files.spec import CountOptions


def measure_twice(config: Config) -> Graph:
    graph = task_pruning(config)
    add(graph, "files", "count_files", CountOptions(suffix=".json"), model="model")
    return graph


RECIPE = measure_twice
