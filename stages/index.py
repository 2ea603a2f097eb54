"""The index of stages, found from their rooms: every `stages/<name>/spec.py` describes one as `STAGE`. Torch-free."""

from __future__ import annotations

import importlib
from pathlib import Path

from stages.stage import Stage


def _find() -> dict[str, Stage]:
    rooms = sorted(path.parent.name for path in Path(__file__).parent.glob("*/spec.py"))
    described = [importlib.import_module(f"stages.{room}.spec").STAGE for room in rooms]
    return {stage.name: stage for stage in described}


STAGES: dict[str, Stage] = _find()
"""By name."""
