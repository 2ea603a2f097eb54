"""What a stage costs, by formulas that a reader can check: operations, bytes of memory, bytes of its result.

Only proportions matter where speeds were measured, since those are counted by the same formulas. P: parameters of the
whole model. A forward pass costs 2 P operations a token, a backward pass twice that. Each room has its own `cost.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from stages.model_size import ModelSize

DECODING = 8
"""A decoded token waits for the weights and costs about so many of a long row."""
ANSWER = 128
"""Tokens of a question, and of an answer to it."""
LIBRARIES = 0.6e9
"""Bytes of a process with PyTorch and transformers before any model."""
SMALL = 1e6
"""Bytes of a result that holds numbers only; less, in fact."""


@dataclass(frozen=True)
class Setting:
    """What of a job decides how large its stages are, besides their own options."""

    dtype: str
    """Of the weights, as stored: float32 or bfloat16."""
    family: str
    window: str
    """Of speech: what the encoder hears, `full` or `clip`; empty for text."""

    @property
    def weight_bytes(self) -> int:
        return 4 if self.dtype == "float32" else 2


@dataclass(frozen=True)
class Workload:
    """What a stage is given, without its model."""

    stage: str
    config: Mapping[str, Any]
    """Its options."""
    inputs: Mapping[str, str]
    """Role -> stage that made it."""
    rows: float | None = None
    """Of an epoch of training."""
    tests: float | None = None
    """Items of the test split."""
    calibration: Mapping[str, Any] | None = None
    """Options of the calibration that it reads."""

    @property
    def calibration_tokens(self) -> float:
        return float(self.calibration["samples"] * self.calibration["length"]) if self.calibration else 0.0


class Cost(Protocol):
    def kind(self, load: Workload) -> str:
        """Runs of another kind have another speed: with or without a teacher, by torch or the engine, which pruner."""

    def operations(self, load: Workload, parameters: float) -> float | None:
        """Of a run; None where nothing tells how much there is to do."""

    def memory_bytes(self, load: Workload, size: ModelSize, setting: Setting) -> float:
        """Peak of the process: weights by their copies, optimizer, activations, logits; libraries."""

    def result_bytes(self, load: Workload, size: ModelSize, setting: Setting) -> float | None:
        """Of what is stored; None where that depends on the data."""


class Unknown:
    """The cost of a stage of which nothing can be said beforehand."""

    def kind(self, load: Workload) -> str:
        return ""

    def operations(self, load: Workload, parameters: float) -> float | None:
        return None

    def memory_bytes(self, load: Workload, size: ModelSize, setting: Setting) -> float:
        return LIBRARIES

    def result_bytes(self, load: Workload, size: ModelSize, setting: Setting) -> float | None:
        return None


UNKNOWN = Unknown()
