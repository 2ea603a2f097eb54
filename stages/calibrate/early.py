"""Checks the options of `calibrate` against the records of the model and the data. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.contracts import DataSet, Structure
from stages.record_checks import check_length, check_split, check_tokens

if TYPE_CHECKING:
    from stages.calibrate.spec import Calibrate


def check_early(options: Calibrate, model: Structure, data: DataSet | None) -> None:
    """Raises UserError for options that cannot work with a model of this structure and these data."""
    check_length(model, options.length, "calibrate.length")
    check_split(data, options.split, "calibrate.split")
    check_tokens(data, options.split, options.samples * options.length, "calibrate.samples")
