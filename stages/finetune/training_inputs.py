"""Prepares and writes what dense and sparse training share: a sound model, rows of tokens that fit it, and the trained
model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from stages import checkpoints, counts, families, masks, packed, tokens
from stages.contracts import Checkpoint, Corpus, DataSet, Log, PackedCorpus, UserError
from stages.data.formats import rows_of
from stages.families import Family
from stages.finetune import batches
from stages.finetune.gradual import Gradual
from stages.finetune.spec import Distill, Training
from stages.finetune.trainer import Plan
from stages.masks import Masks

NO_ITEMS = "the split train or validation has no items"


def load(checkpoint: Checkpoint, device: torch.device, log: Log) -> Any:
    """Returns the model to train, on `device`, without layer drop. Raises UserError for a quantized one, or weights
    that are not finite."""
    if checkpoint.quantization:
        raise UserError("a quantized model cannot be trained; train first, then quantize", "model.path")
    model = checkpoints.load(checkpoint)
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(f"{name} holds NaN or infinite weights", "model.path")
    if dropped := families.switch_off_layer_drop(model):
        log.note(f"layer drop of {dropped:g} is switched off: distillation compares all layers, and so do its controls")
        log.facts(layer_drop_switched_off=dropped)
    return model.to(device)


def plan(
    model: Any,
    family: Family,
    checkpoint: Checkpoint,
    data: DataSet,
    training: Training,
    weights: Distill,
    option: str,
    gradual: Gradual | None = None,
) -> Plan:
    """Returns the plan with rows of the splits `train` and `validation`. Raises UserError when a sequence exceeds the
    model's context."""
    length_option = f"{option}.sequence_length"
    checkpoints.check_length(family.context(model), training.sequence_length, length_option)
    splits = ["train", "validation"]
    if isinstance(data, PackedCorpus):
        splits += [f"validation.{name}" for name in data.index()["validation"]]
    elif training.documents != "join":
        raise UserError("only documents of a packed corpus share rows; expected join", f"{option}.documents")
    if training.documents == "separate" and not tokens.keeps_items_apart(model):
        raise UserError(
            f"{type(model).__name__} does not begin anew where position ids do; expected join", f"{option}.documents"
        )
    rows, validation, *parts = (
        packed.rows(data, split, training.sequence_length, True, length_option)
        if isinstance(data, PackedCorpus) and training.documents == "separate"
        else family.rows(model, checkpoint.path, data, split, training.sequence_length, length_option)
        for split in splits
    )
    if not len(rows) or not len(validation):
        raise UserError(NO_ITEMS, "data")
    named = {split.removeprefix("validation."): part for split, part in zip(splits[2:], parts, strict=True)}
    return Plan(family, training, weights, rows, validation, option, gradual, validation_parts=named)


def held_masks(source: Checkpoint, training: Training, log: Log) -> Masks:
    """Returns the masks that hold in training: those of the model, or none if it is released from them."""
    found = masks.of(source)
    if not training.release:
        return found
    if not found:
        raise UserError("the model is dense already; expected false", "finetune.release")
    log.note(f"releases {masks.sparsity(found):.1%} of the prunable weights, which are 0 and are trained from there")
    return {}


def learned(data: DataSet) -> dict[str, str]:
    """Returns which tokens were learned, for the record; nothing for running text, where all are."""
    if isinstance(data, Corpus) and rows_of(data) in ("items", "conversations"):
        return {"loss_on": data.loss_on}
    return {}


def check_rows(model: Checkpoint, data: DataSet, training: Training, option: str) -> None:
    """Raises UserError if a split that training needs has no row, or if training ends before its warm-up does."""
    train, validation = (
        counts.num_rows(model, data, split, training.sequence_length, f"{option}.sequence_length")
        for split in ("train", "validation")
    )
    if not train or not validation:
        raise UserError(NO_ITEMS, "data")
    steps = batches.count_steps(training, train)  # of a budget of tokens, training counts them
    if training.warmup_steps > steps > 0:
        raise UserError(
            f"a warm-up of {training.warmup_steps} steps would not end in the {steps} steps of {option}.epochs="
            f"{training.epochs:g}; expected at most {steps}",
            f"{option}.warmup_steps",
        )


def write(model: Any, source: Checkpoint, pruned: Masks, out: Path, log: Log) -> dict[str, float]:
    """Saves a trained model, reads it back, checks its zeros; returns its sparsities."""
    total = sum(parameter.numel() for parameter in model.parameters())
    checkpoints.save(model.cpu(), source, pruned, out)
    written = Checkpoint(out, "")
    reloaded = masks.of(written)
    assert masks.digest(reloaded) == masks.digest(pruned), "the masks on disk are not those of training"
    checkpoints.load(written)  # checks that pruned weights are zero
    log.facts(masks_digest=masks.digest(pruned))
    zeros = sum(int((~keep_OI).sum()) for keep_OI in pruned.values())
    return {"sparsity": masks.sparsity(pruned), "model_sparsity": zeros / total}
