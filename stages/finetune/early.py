"""Checks the options of `finetune` against the records of the model and the data. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.contracts import DataSet, Structure, UserError
from stages.prune.early import check_pruner, check_start
from stages.record_checks import check_length

if TYPE_CHECKING:
    from stages.finetune.spec import FinetuneOptions, Training


def check_early(options: FinetuneOptions, model: Structure, data: DataSet | None) -> None:
    """Raises UserError for options that cannot work with a model of this structure and these data."""
    check_training(options.training, options.option, model)
    features = options.distill.feature_terms
    if features and "squarehead" in model.refused:
        raise UserError(model.refused["squarehead"], features[0].option)
    if options.cubic:
        check_pruner(options.cubic.prune, model)
        check_start(options.cubic.initial, model.zeros, "schedule.initial")


def check_training(training: Training, option: str, model: Structure) -> None:
    """Raises UserError, with options under `option`, for training that this model does not support."""
    check_length(model, training.sequence_length, f"{option}.sequence_length")
    if "training" in model.refused:
        raise UserError(model.refused["training"], "model.path")
