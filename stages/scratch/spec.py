"""Stage `scratch`: a model with random weights and its tokenizer. Torch-free description."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from stages.contracts import Checkpoint
from stages.corpus.spec import CorpusOptions
from stages.model.families import FAMILIES
from stages.options import Options, Seed
from stages.stage import MetricSpec, Stage


class Scratch(Options):
    """A model with random weights, and a tokenizer trained on the corpus, or else on the training split."""

    added: ClassVar[frozenset[str]] = frozenset({"tokenizer_bytes"})

    label: str
    """Name in tables and records. It should say that the model is not a pretrained one."""
    vocabulary: int = Field(ge=8)
    """Number of pieces of its tokenizer: SentencePiece for T5, byte-level BPE with single digits for Llama, which has
    257 at least."""
    tokenizer_bytes: int = Field(20_000_000, ge=1)
    """Bytes of a corpus's text that the tokenizer is trained on."""
    settings: dict[str, int | float | str | bool]
    """Arguments of the family's configuration class: sizes first of all."""
    seed: Seed
    """Seed of the random weights."""


class ScratchOptions(Options):
    added: ClassVar[frozenset[str]] = frozenset({"corpus"})

    family: Annotated[str, FAMILIES]
    dtype: Literal["float32", "bfloat16"]
    scratch: Scratch
    corpus: CorpusOptions | None = None
    """Corpus whose texts the tokenizer is trained on; None: those of the input `data`."""


STAGE = Stage(
    "scratch",
    "2",
    ScratchOptions,
    Checkpoint,
    is_source=True,
    metrics=(MetricSpec("parameters", headline=True), MetricSpec("vocabulary")),
)
