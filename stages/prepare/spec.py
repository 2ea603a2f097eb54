"""Stage `prepare`: a data set as an encoder-decoder reads it. Its description for the pipeline, without torch."""

from __future__ import annotations

from stages.contracts import Examples
from stages.options import Options
from stages.stage import MetricSpec, Stage


class PrepareOptions(Options):
    """Nothing to set: examples follow from the model's tokenizer and the data."""


EXAMPLES = tuple(MetricSpec(f"{split}_examples", headline=True) for split in ("train", "validation", "test"))
STAGE = Stage("prepare", "2", PrepareOptions, Examples, is_source=True, metrics=EXAMPLES)
