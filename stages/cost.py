"""Estimates of a stage's cost by formulas that a reader can check: operations, bytes of memory, bytes of its result.

Only proportions matter where speeds were measured, since those are counted by the same formulas. P: parameters of the
whole model. A forward pass costs 2 P operations a token, a backward pass twice that. Each stage has its own `cost.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stages.model_size import ModelSize

DECODING = 8
"""A decoded token waits for the weights and costs about as much as this many tokens of a long row."""
ANSWER = 128
"""Assumed tokens of a question, and of an answer to it."""
LIBRARIES = 0.6e9
"""Bytes of a process with PyTorch and transformers before any model is loaded."""
SMALL = 1e6
"""Bytes of a result that holds numbers only; an upper bound."""


@dataclass(frozen=True)
class Setting:
    """Properties of a job that decide how large its stages are, besides their own options."""

    dtype: str
    """Data type of the stored weights: float32 or bfloat16."""
    family: str
    window: str
    """For speech, the input of the encoder: `full` or `clip`; empty for text."""

    @property
    def weight_bytes(self) -> int:
        return 4 if self.dtype == "float32" else 2


@dataclass(frozen=True)
class Workload:
    """Input of a stage, without its model."""

    stage: str
    config: Mapping[str, Any]
    """Options of the stage."""
    inputs: Mapping[str, str]
    """Role -> stage that made the input."""
    rows: float | None = None
    """Rows of an epoch of training."""
    tests: float | None = None
    """Items of the test split."""
    calibration: Mapping[str, Any] | None = None
    """Options of the calibration that the stage reads."""

    @property
    def calibration_tokens(self) -> float:
        return float(self.calibration["samples"] * self.calibration["length"]) if self.calibration else 0.0

    @property
    def steps_alone(self) -> Workload:
        """The same training without its validations."""
        return replace(self, config={**self.config, "training": {**self.config["training"], "eval_windows": 0}})


class Cost:
    """The cost of a stage about which nothing is known beforehand; stages override what they know."""

    def kind(self, load: Workload) -> str:
        """Returns what separates runs of different speed: with or without a teacher, by torch or the engine, which
        pruner."""
        return ""

    def on_gpu(self, load: Workload) -> bool:
        """Returns whether the stage runs on the GPU if the job has one, so that `memory_bytes` is needed there."""
        return False

    def operations(self, load: Workload, parameters: float) -> float | None:
        """Returns the operations of a run; None if the amount of work is unknown."""
        return None

    def memory_bytes(self, load: Workload, size: ModelSize, setting: Setting) -> float:
        """Returns the peak memory of the process: copies of the weights, optimizer, activations, logits; libraries."""
        return LIBRARIES

    def result_bytes(self, load: Workload, size: ModelSize, setting: Setting) -> float | None:
        """Returns the size of the stored result; None if it depends on the data."""
        return None


UNKNOWN = Cost()
