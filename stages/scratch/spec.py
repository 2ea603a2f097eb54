"""Stage `scratch`: a model of random weights and its tokenizer. What the rest of the house knows of it; torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.contracts import Checkpoint
from stages.options import Family, Options, Seed
from stages.stage import Stage


class Scratch(Options):
    """A model of random weights, with a tokenizer trained on the training split, for the `dense` stage to train."""

    label: str
    """How it is called everywhere; says that it is no pretrained model."""
    vocabulary: int = Field(ge=8)
    """Pieces of its SentencePiece tokenizer."""
    settings: dict[str, int | float | str | bool]
    """Of the family's configuration class, sizes first of all."""
    seed: Seed


class ScratchOptions(Options):
    family: Family
    dtype: Literal["float32", "bfloat16"]
    scratch: Scratch


STAGE = Stage("scratch", "2", ScratchOptions, Checkpoint, is_source=True)
