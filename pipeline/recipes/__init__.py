"""Recipes: functions from a resolved configuration to the DAG of a job. A file each, and a file in conf/recipe/.

A member defines `RECIPE`. What recipes have in common is in `pipeline.steps`. One job is one path; a fan-out (levels,
losses, tasks) is a sweep, and fingerprints see to it that what its jobs share is made once.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.graph import Graph
from pipeline.schema import Config
from stages.kinds import Kinds

Recipe = Callable[[Config], Graph]
"""Builds the graph of a job. Raises UserError where parts of the configuration contradict each other."""
RECIPES: Kinds[Recipe] = Kinds("recipe", __name__, "RECIPE", "recipe")


def build(config: Config) -> Graph:
    """Builds the graph of a resolved configuration by its recipe. Raises UserError."""
    return RECIPES.get(config.recipe)(config)
