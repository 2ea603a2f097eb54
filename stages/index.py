"""The index of stages, found from their rooms: every `stages/<name>/spec.py` describes one as `STAGE`. Torch-free.

Another installed package adds its own by entry points of the group `squarehead.stages`, which name such a constant.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from pathlib import Path

from stages.stage import Stage


def _find() -> dict[str, Stage]:
    rooms = sorted(path.parent.name for path in Path(__file__).parent.glob("*/spec.py"))
    found: list[Stage] = [importlib.import_module(f"stages.{room}.spec").STAGE for room in rooms]
    found += [point.load() for point in entry_points(group="squarehead.stages")]
    return {stage.name: stage for stage in found}


STAGES = _find()
"""By name."""
