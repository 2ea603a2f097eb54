"""Checks the options of `dense` against the records of the model and the data. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.contracts import DataSet, Structure
from stages.finetune.early import check_training

if TYPE_CHECKING:
    from stages.dense.spec import DenseOptions


def check_early(options: DenseOptions, model: Structure, data: DataSet | None) -> None:
    """Raises UserError for options that cannot work with a model of this structure and these data."""
    check_training(options.training, options.option, model)
