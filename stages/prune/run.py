"""Stage `prune`: one pruning step. Reads a dense or earlier-pruned checkpoint, writes a pruned checkpoint with its
masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from stages import checkpoints, devices, families, masks
from stages.calibrate.samples import load_samples
from stages.contracts import Artifact, Calibration, Checkpoint, DataSet, Log, UserError
from stages.families import structure
from stages.masks import Masks
from stages.prune import nesting
from stages.prune.goals import known_goals
from stages.prune.selection import num_pruned
from stages.prune.sequential import LayerReport, note_raised_damping, note_unreached, prune_model
from stages.prune.spec import HessianOptions, PruneOptions
from stages.skipping import skipped


def check(config: PruneOptions, model: Checkpoint, data: DataSet) -> None:
    """Raises UserError for a level or pattern that is impossible with the zeros that the model came with."""
    earlier, known = masks.of(model), model.structure()
    if not (config.sparsity and earlier and known):
        return
    skips = skipped(config.prune.skip, known.linears, "prune.skip", known.left_alone)
    shapes = {name: shape for name, shape in known.linears.items() if name not in skips}
    if goals := known_goals(config.prune, shapes, config.sparsity):
        nesting.check(shapes, goals, earlier, config.prune, config.sparsity)


def run(config: PruneOptions, inputs: Mapping[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Prunes the model; what its masks prune stays pruned.

    Inputs: `model` (Checkpoint) and, for pruners that need it, `calibration`. Output: Checkpoint. Metrics by layer
    number: `layer_error` (relative reconstruction error) and `layer_sparsity`.
    """
    source, calibration = inputs["model"], inputs.get("calibration")
    assert isinstance(source, Checkpoint)
    assert calibration is None or isinstance(calibration, Calibration)
    if source.quantization:
        raise UserError("a quantized model cannot be pruned; prune first, then quantize", "prune")
    model = checkpoints.load(source).to(devices.of(log.device))
    family = families.of(source.path)
    samples = load_samples(calibration) if calibration else None
    if samples:
        checkpoints.check_length(family.context(model), samples["use"].shape[1], "calibrate.length")
    known = source.structure() or structure.of(model, family)
    if line := structure.share_note(known):
        log.note(line)
    previous = masks.of(source)
    pruned, reports = prune_model(model, family, samples, config.prune, config.sparsity, previous, log, log.resume)
    _check(model, pruned, reports, config, previous)
    checkpoints.save(model.cpu(), source, pruned, out)
    total = sum(parameter.numel() for parameter in model.parameters())
    del model

    written = Checkpoint(out, "")
    reloaded = masks.of(written)
    assert masks.digest(reloaded) == masks.digest(pruned)
    _check(checkpoints.load(written), reloaded, reports, config, previous)

    for number, report in enumerate(reports):
        values = {"layer_error": report.error, "layer_sparsity": report.sparsity}
        log.metrics({key: value for key, value in values.items() if value is not None}, step=number)
    asked = config.prune.damping if isinstance(config.prune, HessianOptions) else None
    dampings = [report.damping for report in reports if report.damping is not None]
    note_unreached(reports, log)
    note_raised_damping(reports, config.prune, log)
    log.facts(
        precision=config.prune.precision if samples and config.prune.needs != "nothing" else None,
        damping={"asked": asked, "most_used": max(dampings)} if dampings else None,
        masks_digest=masks.digest(pruned),
        layers=[asdict(report) for report in reports],
    )
    zeros = sum(int((~keep_OI).sum()) for keep_OI in pruned.values())
    found = {"sparsity": masks.sparsity(pruned), "model_sparsity": zeros / total}
    found["prunable_share"] = known.prunable_share
    errors = [report.error for report in reports if report.error is not None]
    return found | ({"mean_layer_error": sum(errors) / len(errors)} if errors else {})


def _check(model: Any, pruned: Masks, reports: Sequence[LayerReport], config: PruneOptions, previous: Masks) -> None:
    """Asserts zeros where the masks prune, exact counts, and that nothing pruned before is kept."""
    masks.check(model, pruned)
    for report in reports:
        name, keep_OI = report.name, pruned[report.name]
        rows, columns = keep_OI.shape
        asked = num_pruned(rows, columns, report.target, config.prune, previous.get(name))
        found = int((~keep_OI).sum())
        assert found == asked or not config.sparsity, f"{name}: {found} weights pruned, {asked} asked for"
        assert not torch.any(keep_OI & ~previous.get(name, keep_OI)), f"{name}: an earlier mask is not kept"
