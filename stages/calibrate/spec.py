"""Stage `calibrate`: draws calibration samples. What the rest of the house knows of it; torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.calibrate.cost import CalibrateCost
from stages.calibrate.early import check_early
from stages.contracts import Calibration
from stages.options import Options, Seed
from stages.stage import Stage


class Calibrate(Options):
    samples: int = Field(ge=1)
    length: int = Field(ge=2)
    """Tokens of a sample. text: padding-free windows of packed text; qa: one item each, padded and masked."""
    split: str
    seed: Seed
    draw: Literal["windows", "documents"] = "windows"
    """text: windows of the whole stream, or a random stretch of each of some random documents longer than `length`, as
    SparseGPT and Wanda draw from C4."""


STAGE = Stage("calibrate", "4", Calibrate, Calibration, check_early=check_early, cost=CalibrateCost())
