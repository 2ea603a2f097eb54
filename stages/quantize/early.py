"""Checks the options of `quantize` against the records of the model and the data. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.contracts import DataSet, Structure, UserError
from stages.skipping import skipped

if TYPE_CHECKING:
    from stages.quantize.spec import Quantize


def check_early(options: Quantize, model: Structure, data: DataSet | None) -> None:
    """Raises UserError for options that cannot work with a model of this structure and these data."""
    left = len(model.linears) - len(skipped(options.skip, model.linears, "quantize.skip", model.left_alone))
    if options.skip_sensitive >= left:
        raise UserError(f"would leave none of {left} linears to quantize", "quantize.skip_sensitive")
