"""Stage `calibrate`: draws calibration samples. Torch-free description."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.calibrate.cost import CalibrateCost
from stages.calibrate.early import check_early
from stages.contracts import Calibration
from stages.options import Options, Seed
from stages.stage import MetricSpec, Stage


class Calibrate(Options):
    """Samples of the training data on which pruning and quantization measure the inputs of layers."""

    samples: int = Field(ge=1)
    """Number of calibration samples."""
    length: int = Field(ge=2)
    """Tokens of a sample. Running text is packed into windows without padding; of questions and answers each sample is
    one item, padded and masked."""
    split: str
    """Split that the samples are drawn from."""
    seed: Seed
    """Seed of the draw."""
    draw: Literal["windows", "documents"] = "windows"
    """For running text. windows: windows of the whole stream. documents: a random stretch of each of some random
    documents longer than `length`, as SparseGPT and Wanda draw from C4."""


STAGE = Stage(
    "calibrate",
    "4",
    Calibrate,
    Calibration,
    check_early=check_early,
    cost=CalibrateCost(),
    metrics=(MetricSpec("samples", "samples", headline=True), MetricSpec("real_tokens", "tokens")),
    needs_baseline=True,
)
