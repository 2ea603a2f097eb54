"""Stage `quantize`: W8A8 checkpoints. Its description for the pipeline, without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from stages.contracts import Checkpoint
from stages.options import Options, regular_expressions
from stages.quantize.cost import QuantizeCost
from stages.quantize.early import check_early
from stages.stage import Stage


class Quantize(Options):
    """Quantization to int8 after fine-tuning."""

    scheme: Literal["none", "w8a8"]
    """w8a8: int8 weights with a scale for each output channel, int8 activations with a scale for each token."""
    smooth: float = Field(ge=0, le=1)
    """SmoothQuant's migration strength (arXiv 2211.10438), where a scale folds exactly; 0 is off."""
    skip: list[str]
    """Regular expressions of linears to leave in floating point (full match on the dotted name)."""
    skip_sensitive: int = Field(ge=0)
    """Leave out the linears whose quantization alone raises the calibration loss most: this many, found by
    measurement."""
    dense: bool
    """Also quantize the dense model, to separate the cost of int8 from that of sparsity."""

    @field_validator("skip")
    @classmethod
    def _readable(cls, value: list[str]) -> list[str]:
        return regular_expressions(value)


STAGE = Stage("quantize", "2", Quantize, Checkpoint, check_early=check_early, cost=QuantizeCost())
