"""Stage `corpus_perplexity`: perplexity of each source of a corpus. Its description for the pipeline, without torch."""

from __future__ import annotations

from pydantic import Field

from stages.contracts import Metrics
from stages.options import Options
from stages.stage import Stage


class CorpusPerplexityOptions(Options):
    length: int = Field(ge=2)
    """Tokens of a window."""
    windows: int = Field(ge=1)
    """Of each source's validation text, as far as it has so many."""
    batch_size: int = Field(ge=1)


STAGE = Stage("corpus_perplexity", "1", CorpusPerplexityOptions, Metrics)
