"""Stage `quantize`: W8A8 checkpoints. What the rest of the house knows of it; torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from stages.contracts import Checkpoint
from stages.options import Options, regular_expressions
from stages.quantize.cost import QuantizeCost
from stages.quantize.early import check_early
from stages.stage import Stage


class Quantize(Options):
    scheme: Literal["none", "w8a8"]
    smooth: float = Field(ge=0, le=1)
    """SmoothQuant's migration strength (arXiv 2211.10438), where a scale folds exactly; 0 is off."""
    skip: list[str]
    """Regular expressions of linears to leave in floating point (full match on the dotted name)."""
    skip_sensitive: int = Field(ge=0)
    """Leave out this many linears whose quantization alone raises the calibration loss most, by measurement."""
    dense: bool
    """Quantize the dense model too, so that quantization's share is told from sparsity's."""

    @field_validator("skip")
    @classmethod
    def _readable(cls, value: list[str]) -> list[str]:
        return regular_expressions(value)


STAGE = Stage("quantize", "2", Quantize, Checkpoint, check_early=check_early, cost=QuantizeCost())
