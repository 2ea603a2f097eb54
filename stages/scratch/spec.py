"""Stage `scratch`: a model of random weights and its tokenizer. Its description for the pipeline, without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stages.contracts import Checkpoint
from stages.model.families import FAMILIES
from stages.options import Options, Seed
from stages.stage import MetricSpec, Stage


class Scratch(Options):
    """A model of random weights, with a tokenizer trained on the training split, for the `dense` stage to train."""

    label: str
    """Name in tables and records. It should say that the model is not a pretrained one."""
    vocabulary: int = Field(ge=8)
    """Number of pieces of its SentencePiece tokenizer."""
    settings: dict[str, int | float | str | bool]
    """Arguments of the family's configuration class: sizes first of all."""
    seed: Seed
    """Seed of the random weights."""


class ScratchOptions(Options):
    family: Annotated[str, FAMILIES]
    dtype: Literal["float32", "bfloat16"]
    scratch: Scratch


STAGE = Stage(
    "scratch",
    "2",
    ScratchOptions,
    Checkpoint,
    is_source=True,
    metrics=(MetricSpec("parameters", headline=True), MetricSpec("vocabulary")),
)
