"""Stage `quantize`: converts a dense or sparse model to a quantization scheme, with optional SmoothQuant and exceptions
by measurement."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stages import checkpoints, families, masks
from stages.calibrate.samples import load_samples
from stages.contracts import Artifact, Calibration, Checkpoint, Log, UserError
from stages.families import Batch, Family
from stages.quantize import sensitivity, smoothquant, writing
from stages.quantize.schemes import SCHEMES
from stages.quantize.spec import Quantize
from stages.quantize.wiring import wiring
from stages.skipping import skipped

SENSITIVITY_WINDOWS = 4
"""Calibration samples on which each linear's loss increase is measured."""
SMOOTHING_SAMPLES = 16
"""Calibration samples for SmoothQuant's activation maxima: outlying channels are the same in all."""


def run(config: Quantize, inputs: Mapping[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Quantizes the model.

    Inputs: `model` (Checkpoint, not quantized yet) and, if the scheme reads inputs, `calibration` (Calibration).
    Output: quantized Checkpoint.
    """
    source = inputs["model"]
    assert isinstance(source, Checkpoint)
    scheme = SCHEMES.get(config.scheme)
    if source.quantization:
        raise UserError("the model is quantized already; give the checkpoint in floating point", "quantize.scheme")
    family = families.of(source.path)
    # smoothing and rounding happen in fp32; `save` brings the rest back to the stored type
    model = checkpoints.load(source).float()
    stored = writing.stored_dtype(model)
    layer = partial(scheme.layer, scale_dtype=stored)
    pruned = masks.of(source)
    prunable, alone = family.prunable(model), family.left_alone(model)
    dimensions = wiring(model, family.example(model)).dimensions
    if alone:
        name, reason = next(iter(alone.items()))
        log.note(f"{len(alone)} linears stay in floating point, for example {name}: {reason}")
    skips = skipped(config.skip, prunable, "quantize.skip", alone)
    exempt = alone | {name: f"matches {pattern!r}" for name, pattern in skips.items()}
    targets = [name for name in prunable if name not in exempt]
    smoothing = smoothquant.Smoothing({}, [])
    if config.smooth:
        seen = batches(family, inputs["calibration"], SMOOTHING_SAMPLES)
        smoothing = smoothquant.smooth_(model, family, targets, seen, config.smooth, stored, log)
    if config.skip_sensitive:
        if config.skip_sensitive >= len(targets):
            raise UserError(f"would leave none of {len(targets)} linears to quantize", "quantize.skip_sensitive")
        batch = batches(family, inputs["calibration"], SENSITIVITY_WINDOWS)[0]
        rises = sensitivity.loss_increases(model, family, targets, batch, layer, log)
        for name in sorted(rises, key=lambda name: -rises[name])[: config.skip_sensitive]:
            exempt[name] = f"raises the loss by {rises[name]:.3g} nats a token"
            targets.remove(name)
    described = scheme.describe(model, family, source, targets, dimensions, log)
    errors = _round_(model, prunable, targets, layer, log)
    _try(model, family, scheme.precision)
    file = writing.save(model, pruned, described, out)
    checkpoints.copy_side_files(source, out)
    log.facts(
        quantized=len(targets),
        skipped=exempt,
        method=described["quant_method"],
        folded=smoothing.folded,
        unsmoothed=smoothing.unsmoothed,
    )
    return {
        "weight_bytes": float(file.stat().st_size),
        "sparsity": masks.sparsity(pruned),
        "weight_error": sum(errors) / len(errors),
        "quantized_linears": float(len(targets)),
    }


def _round_(
    model: nn.Module,
    prunable: Mapping[str, nn.Linear],
    targets: Collection[str],
    quantized: Callable[[nn.Linear], Any],
    log: Log,
) -> list[float]:
    """Replaces `targets` by quantized linears. Returns the relative error of the weights of each."""
    errors = []
    with log.bar("quantize", total=len(targets), unit="linear") as bar:
        for name in targets:
            W_OI = prunable[name].weight.detach()
            layer = quantized(prunable[name])
            errors.append(float((layer.dequantized() - W_OI).norm() / W_OI.norm().clamp_min(1e-30)))
            model.set_submodule(name, layer)
            log.metrics({"weight_error": errors[-1]}, list(prunable).index(name))
            bar.advance()
    return errors


@torch.inference_mode()
def _try(model: nn.Module, family: Family, precision: str) -> None:
    """Raises UserError if the model does more with its linears than call them."""
    try:
        model(**family.example(model), use_cache=False)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{type(model).__name__} cannot run with {precision} linears: {reason}", "quantize") from error


def batches(family: Family, calibration: Artifact, samples: int, size: int = 4) -> list[Batch]:
    """Yields the first `samples` calibration samples, `size` at a time."""
    assert isinstance(calibration, Calibration)
    seen = load_samples(calibration)
    return [
        family.trim({name: tensor[at : min(at + size, samples)] for name, tensor in seen.items()})
        for at in range(0, min(samples, len(seen["use"])), size)
    ]
