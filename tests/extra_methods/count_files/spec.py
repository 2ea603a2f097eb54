"""A stage: counts the files of a checkpoint."""

from __future__ import annotations

from stages.contracts import Metrics
from stages.options import Options
from stages.stage import Stage


class CountOptions(Options):
    suffix: str


STAGE = Stage("count_files", "1", CountOptions, Metrics)
