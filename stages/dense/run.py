"""Stage `dense`: fine-tuning before pruning. Its result is the teacher, the starting point and the baseline.

A model that came sparse stays as sparse: its masks hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages import devices, families, masks
from stages.contracts import Artifact, Checkpoint, DataSet, Log
from stages.dense.spec import DenseOptions
from stages.finetune import training_inputs
from stages.finetune.randomness import seeded
from stages.finetune.trainer import train


def check(config: DenseOptions, model: Checkpoint, data: DataSet) -> None:
    """Raises UserError if the data have no rows to train and validate on."""
    training_inputs.check_rows(model, data, config.training, config.option)


def run(config: DenseOptions, inputs: Mapping[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Trains the model with the task loss alone.

    Inputs: `model` (Checkpoint) and `data` (DataSet). Output: Checkpoint.
    """
    source, data = inputs["model"], inputs["data"]
    assert isinstance(source, Checkpoint)
    assert not config.distill.needs_teacher, "there is no teacher before the dense model"
    assert isinstance(data, DataSet)
    with seeded(config.training.seed):
        family = families.of(source.path)
        model = training_inputs.load(source, devices.of(log.device), log)
        plan = training_inputs.plan(model, family, source, data, config.training, config.distill, config.option)
        start = training_inputs.held_masks(source, config.training, log)
        if start:
            log.note(f"trains a model of {masks.sparsity(start):.1%} sparsity, whose zeros stay zero")
        pruned, metrics = train(model, plan, None, start, log)
        log.facts(
            data_digest=data.digest,
            precision=config.training.precision,
            rows=len(plan.rows),
            **training_inputs.learned(data),
        )
        return metrics | training_inputs.write(model, source, pruned, out, log)
