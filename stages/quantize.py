"""Stage `quantize`: a dense or sparse model to W8A8, with optional SmoothQuant and measured exceptions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.contracts import Artifact, Calibration, Checkpoint, Log, UserError
from pipeline.schema import Quantize
from stages import calibrate, checkpoints, families, masks
from stages.families import Batch, Family
from stages.quantization import quantized, sensitivity, smoothquant
from stages.skipping import skipped

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
    alone = family.left_alone(model)
    skips = skipped(config.skip, prunable, "quantize.skip", alone)
    exempt = {name: f"matches {pattern!r}" for name, pattern in skips.items()}
    targets = [name for name in prunable if name not in exempt]
    smoothing = smoothquant.Smoothing({}, {})
    if config.smooth:
        seen = batches(family, inputs["calibration"], SMOOTHING_SAMPLES)
        smoothing = smoothquant.smooth_(model, family, targets, seen, config.smooth, log)
    if config.skip_sensitive:
        if config.skip_sensitive >= len(targets):
            raise UserError(f"would leave none of {len(targets)} linears to quantize", "quantize.skip_sensitive")
        batch = batches(family, inputs["calibration"], SENSITIVITY_WINDOWS)[0]
        rises = sensitivity.loss_increases(model, family, targets, smoothing.stored, batch, log)
        for name in sorted(rises, key=lambda name: -rises[name])[: config.skip_sensitive]:
            exempt[name] = f"raises the loss by {rises[name]:.3g} nats a token"
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
        "skipped": exempt,
        "smooth": {"alpha": config.smooth, "folded": smoothing.folded, "stored": sorted(smoothing.stored)},
    }
    quantized.save(model, pruned, record, out)
    checkpoints.copy_side_files(source, out)
    log.facts(quantized=len(targets), skipped=exempt, folded=len(smoothing.folded), stored=len(smoothing.stored))
    return {
        "weight_bytes": float((out / "model.safetensors").stat().st_size),
        "sparsity": masks.sparsity(pruned),
        "weight_error": sum(errors) / len(errors),
        "quantized_linears": float(len(targets)),
    }


def batches(family: Family, calibration: Artifact, samples: int, size: int = 4) -> list[Batch]:
    """The first `samples` calibration samples, `size` at a time."""
    assert isinstance(calibration, Calibration)
    seen = calibrate.load(calibration)
    return [
        family.trim({name: tensor[at : min(at + size, samples)] for name, tensor in seen.items()})
        for at in range(0, min(samples, len(seen["use"])), size)
    ]
