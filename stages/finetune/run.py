"""Stage `finetune`: sparse fine-tuning with distillation from the dense model (arXiv 2310.06927)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages import checkpoints, devices, families
from stages.calibrate.samples import load_samples
from stages.contracts import Artifact, Calibration, Checkpoint, DataSet, Log, UserError
from stages.families import Family
from stages.finetune import resume, training_inputs
from stages.finetune.gradual import Gradual
from stages.finetune.randomness import seeded
from stages.finetune.spec import CubicOptions, FinetuneOptions
from stages.finetune.teacher import CachedTeacher, Teacher
from stages.finetune.trainer import Plan, train
from stages.masks import Masks
from stages.prune import nesting
from stages.prune.goals import known_goals
from stages.prune.selection import shape_of
from stages.prune.sequential import linears_to_prune

STATE = "state"
"""Folder of a result from which another training continues."""


def check(config: FinetuneOptions, model: Checkpoint, data: DataSet) -> None:
    """Raises UserError if the data have no rows to train and validate on."""
    training_inputs.check_rows(model, data, config.training, config.option)


def run(config: FinetuneOptions, inputs: Mapping[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Trains the sparse model, whose masks hold.

    Inputs: `model` (Checkpoint), `data` (DataSet), `teacher` (Checkpoint; not read if no loss needs one) and, for a
    cubic schedule with a pruner that needs it, `calibration`. Output: Checkpoint.
    """
    source, data = inputs["model"], inputs["data"]
    assert isinstance(source, Checkpoint)
    assert isinstance(data, DataSet)
    with seeded(config.training.seed):
        family = families.of(source.path)
        model = training_inputs.load(source, devices.of(log.device), log)
        earlier = training_inputs.held_masks(source, config.training, log)
        gradual = _gradual(config.cubic, model, family, inputs, earlier, log) if config.cubic else None
        plan = training_inputs.plan(
            model, family, source, data, config.training, config.distill, config.option, gradual
        )
        if config.continues:
            resume.go_on_from(source.path / STATE, log.resume)
        if config.keeps_state:
            plan = replace(plan, state=out / STATE)
        teacher = _teacher(plan, model, inputs, log) if config.distill.needs_teacher else None
        pruned, metrics = train(model, plan, teacher, earlier, log)
        if teacher:
            teacher.check_untouched()
        del teacher
        log.facts(
            data_digest=data.digest,
            precision=config.training.precision,
            rows=len(plan.rows),
            distill=config.distill.model_dump(),
            **training_inputs.learned(data),
        )
        return metrics | training_inputs.write(model, source, pruned, out, log)


def _teacher(plan: Plan, model: Any, inputs: Mapping[str, Artifact], log: Log) -> Teacher | CachedTeacher:
    checkpoint = inputs.get("teacher")
    if not isinstance(checkpoint, Checkpoint):
        raise UserError("the losses need a teacher", "distill")
    live = Teacher(
        checkpoint, plan.family, plan.training, all_layers=bool(plan.weights.feature_terms), device=model.device
    )
    shape = [
        (len(plan.family.blocks(m)), families.text_config(m).hidden_size, families.text_config(m).vocab_size)
        for m in (live.model, model)
    ]
    if shape[0] != shape[1]:
        raise UserError(
            f"(layers, width, vocabulary) of the teacher are {shape[0]}, of the model {shape[1]}", "model.path"
        )
    visited = plan.order()
    if not plan.training.teacher_cache_gb or not len(visited):
        return live
    return CachedTeacher(live, plan.rows, visited, plan.training, log, plan.option)


def _gradual(
    config: CubicOptions, model: Any, family: Family, inputs: Mapping[str, Artifact], earlier: Masks, log: Log
) -> Gradual:
    calibration = inputs.get("calibration")
    assert calibration is None or isinstance(calibration, Calibration)
    try:
        linears = linears_to_prune(model, family, config.prune)
        shapes = {name: shape_of(linear) for name, linear in linears.items()}
        goals = known_goals(config.prune, shapes, config.initial)
        if goals and (line := nesting.check(shapes, goals, earlier, config.prune, config.initial)):
            log.note(line)
    except UserError as error:
        raise UserError(error.message, "schedule.initial" if error.option == "sparsity" else error.option) from None
    samples = load_samples(calibration) if calibration else None
    if samples:
        checkpoints.check_length(family.context(model), samples["use"].shape[1], "calibrate.length")
    return Gradual(config, family, samples)
