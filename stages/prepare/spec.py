"""Stage `prepare`: converts a data set for an encoder-decoder. Torch-free description."""

from __future__ import annotations

from stages.contracts import Examples
from stages.options import Options
from stages.stage import MetricSpec, Stage


class PrepareOptions(Options):
    """No options: examples follow from the model's tokenizer and the data."""


EXAMPLES = tuple(MetricSpec(f"{split}_examples", headline=True) for split in ("train", "validation", "test"))
STAGE = Stage("prepare", "2", PrepareOptions, Examples, is_source=True, metrics=EXAMPLES)
