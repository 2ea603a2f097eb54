"""What the records of the model and the data tell of the options of `evaluate`. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.contracts import DataSet, Structure
from stages.record_checks import check_length, check_split, check_tokens

if TYPE_CHECKING:
    from stages.evaluate.spec import EvaluateOptions


def check_early(options: EvaluateOptions, model: Structure, data: DataSet | None) -> None:
    """Raises UserError for options that cannot go well with a model of this structure and these data."""
    if asked := options.perplexity:
        check_length(model, asked.length, "evaluate.perplexity.length")
        check_split(data, asked.split, "evaluate.perplexity.split")
        tokens = max(asked.windows, 1) * asked.length
        check_tokens(data, asked.split, tokens, "evaluate.perplexity.windows")
    if options.generation:
        check_split(data, options.generation.split, "evaluate.generation.split")
