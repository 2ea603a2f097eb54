"""Stage `quantize`: a dense or sparse model to W8A8, with optional SmoothQuant and measured exceptions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.contracts import Artifact, Calibration, Checkpoint, Log, UserError
from pipeline.schema import Quantize
from stages import calibrate, checkpoints, families, masks
from stages.families import Batch
from stages.quantization import quantized, sensitivity, smoothquant
from stages.tokens import IGNORED

SENSITIVITY_WINDOWS = 4
"""Calibration samples on which each linear's loss increase is measured."""
SMOOTHING_SAMPLES = 16
"""Calibration samples whose activation maxima SmoothQuant takes: outlying channels are the same in all."""


def run(config: Quantize, inputs: Mapping[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """`model` (Checkpoint, not quantized yet) and, for `smooth` and `skip_sensitive` only, `calibration`
    (Calibration) -> quantized Checkpoint."""
    source = inputs["model"]
    assert isinstance(source, Checkpoint)
    assert config.scheme == "w8a8", f"the pipeline has no quantize stage with scheme {config.scheme}"
    if source.quantization:
        raise UserError("the model is quantized already", "quantize.scheme")
    family = families.of(source.path)
    # smoothing and rounding happen in fp32; `save` brings the rest back to the stored type
    model = checkpoints.load(source).float()
    pruned = masks.of(source)
    prunable = family.prunable(model)
    skipped = {name: f"matches {pattern!r}" for name, pattern in matches(config.skip, list(prunable)).items()}
    targets = [name for name in prunable if name not in skipped]
    smoothing = smoothquant.Smoothing({}, {})
    if config.smooth:
        seen = batches(inputs["calibration"], SMOOTHING_SAMPLES)
        smoothing = smoothquant.smooth_(model, family, targets, seen, config.smooth, log)
    if config.skip_sensitive:
        if config.skip_sensitive >= len(targets):
            raise UserError(f"would leave none of {len(targets)} linears to quantize", "quantize.skip_sensitive")
        batch = batches(inputs["calibration"], SENSITIVITY_WINDOWS)[0]
        rises = sensitivity.loss_increases(model, family, targets, smoothing.stored, batch, log)
        for name in sorted(rises, key=lambda name: -rises[name])[: config.skip_sensitive]:
            skipped[name] = f"raises the loss by {rises[name]:.3g} nats a token"
            targets.remove(name)
    errors = []
    with log.bar("quantize", total=len(targets), unit="linear") as bar:
        for name in targets:
            W_OI = prunable[name].weight.detach()
            layer = quantized.Int8Linear.of(prunable[name], smoothing.stored.get(name))
            errors.append(float((layer.dequantized() - W_OI).norm() / W_OI.norm().clamp_min(1e-30)))
            model.set_submodule(name, layer)
            log.metrics({"weight_error": errors[-1]}, list(prunable).index(name))
            bar.advance()
    record = {
        "scheme": config.scheme,
        "weights": "int8, symmetric, per output channel",
        "activations": "int8, symmetric, per token, dynamic",
        "skipped": skipped,
        "smooth": {"alpha": config.smooth, "folded": smoothing.folded, "stored": sorted(smoothing.stored)},
    }
    quantized.save(model, pruned, record, out)
    checkpoints.copy_tokenizer(source, out)
    log.facts(quantized=len(targets), skipped=skipped, folded=len(smoothing.folded), stored=len(smoothing.stored))
    return {
        "weight_bytes": float((out / "model.safetensors").stat().st_size),
        "sparsity": masks.sparsity(pruned),
        "weight_error": sum(errors) / len(errors),
        "quantized_linears": float(len(targets)),
    }


def matches(patterns: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Name -> the first pattern that fully matches it. Raises UserError for a pattern that matches nothing."""
    found: dict[str, str] = {}
    for pattern in patterns:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise UserError(f"{pattern!r} is no regular expression: {error}", "quantize.skip") from None
        hits = [name for name in names if compiled.fullmatch(name)]
        if not hits:
            raise UserError(f"{pattern!r} matches none of {len(names)} linears, such as {names[0]}", "quantize.skip")
        found = dict.fromkeys(hits, pattern) | found
    if len(found) == len(names):
        raise UserError(f"leaves none of {len(names)} linears to quantize", "quantize.skip")
    return found


def batches(calibration: Artifact, samples: int, size: int = 4) -> list[Batch]:
    """The first `samples` calibration samples, `size` at a time; a mask only where there is padding."""
    assert isinstance(calibration, Calibration)
    ids_NL, mask_NL = (tensor_NL[:samples] for tensor_NL in calibrate.load(calibration))
    return [_batch(ids_NL[at : at + size], mask_NL[at : at + size]) for at in range(0, len(ids_NL), size)]


def _batch(ids_BT: Tensor, mask_BT: Tensor) -> Batch:
    batch = {"input_ids": ids_BT, "labels": ids_BT.masked_fill(mask_BT == 0, IGNORED), "use": mask_BT}
    return batch if bool(torch.all(mask_BT == 1)) else batch | {"attention_mask": mask_BT}
