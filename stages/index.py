"""The index of stages, found from their packages: every `stages/<name>/spec.py` describes one as `STAGE`. Torch-free.

Another installed package adds its own by entry points of the group `squarehead.stages`, which name such a constant.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from pathlib import Path

from stages.contracts import Artifact, UserError
from stages.kinds import distribution
from stages.options import Options
from stages.stage import Stage


def _find() -> tuple[dict[str, Stage], dict[str, str]]:
    rooms = sorted(path.parent.name for path in Path(__file__).parent.glob("*/spec.py"))
    own: list[Stage] = [importlib.import_module(f"stages.{room}.spec").STAGE for room in rooms]
    found, brought = {stage.name: stage for stage in own}, {}
    for point in entry_points(group="squarehead.stages"):
        stage: Stage = point.load()
        if stage.name in found:
            raise UserError(f"{point.value} gives the stage {stage.name!r} a second time; rename it there")
        found[stage.name], brought[stage.name] = stage, distribution(point)
    return found, brought


STAGES, _BROUGHT = _find()
"""Stages by name."""


UNKNOWN = Stage("", "", Options, Artifact)


def described(stage: str) -> Stage:
    """Returns the description of a stage by its name; for a stage that does not exist (any more), an empty one."""
    return STAGES.get(stage, UNKNOWN)


def provider(stage: str) -> dict[str, str]:
    """Returns `stage distill_more` -> `extra-methods==1.2` for a stage from another distribution; empty for those of
    this project."""
    return {f"stage {stage}": _BROUGHT[stage]} if stage in _BROUGHT else {}
