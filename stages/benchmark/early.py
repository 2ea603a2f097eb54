"""Checks the options of `benchmark` against the records of the model and the data. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.contracts import Corpus, DataSet, Structure
from stages.data.formats import rows_of
from stages.record_checks import check_length, check_split, check_tokens

if TYPE_CHECKING:
    from stages.benchmark.spec import BenchmarkOptions


def check_early(options: BenchmarkOptions, model: Structure, data: DataSet | None) -> None:
    """Raises UserError for options that cannot work with a model of this structure and these data."""
    if isinstance(data, Corpus) and rows_of(data) not in ("pairs", "clips"):  # encoder-decoders read whole examples
        length = options.prompt_tokens + options.new_tokens
        check_length(model, length, "benchmark.prompt_tokens")
        check_split(data, "test", "benchmark.backends")
        check_tokens(data, "test", options.prompt_tokens, "benchmark.prompt_tokens")
