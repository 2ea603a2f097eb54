"""Stage `corpus_perplexity`: perplexity of each source of a corpus. Torch-free description."""

from __future__ import annotations

from pydantic import Field

from stages.contracts import Metrics
from stages.options import Options
from stages.stage import Stage


class CorpusPerplexityOptions(Options):
    length: int = Field(ge=2)
    """Tokens of a window."""
    windows: int = Field(ge=1)
    """Windows of each source's validation text, if it has so many."""
    batch_size: int = Field(ge=1)


STAGE = Stage("corpus_perplexity", "1", CorpusPerplexityOptions, Metrics)
