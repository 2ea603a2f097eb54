"""Reads calibration samples, for the stages that measure a model's activations."""

from __future__ import annotations

from safetensors.torch import load_file

from stages.contracts import Calibration
from stages.families import Batch


def load_samples(calibration: Calibration) -> Batch:
    """Returns the tensors of a batch, one row for each sample; integers are int64."""
    stored = load_file(calibration.samples)
    return {name: tensor if tensor.is_floating_point() else tensor.long() for name, tensor in stored.items()}
