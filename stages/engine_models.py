"""Loads checkpoints as models whose linears the sparse engine computes."""

from __future__ import annotations

from typing import Any

from engine import kernels
from engine.conversion import convert
from engine.errors import EngineError
from engine.weights import DType, Quantized
from stages import checkpoints, families
from stages.contracts import Checkpoint, UserError
from stages.quantize import quantized, schemes


def load(checkpoint: Checkpoint, dtype: DType, option: str, head: DType = "fp32") -> Any:
    """Returns the model in eval mode, with prunable linears in `dtype`. Of a quantized checkpoint, which needs "int8",
    exactly the quantized linears run in the engine, with their weights and scales.

    Raises UserError, with the option to change, if the engine cannot run it.
    """
    if reason := kernels.unavailable():
        raise UserError(reason, option)
    scheme = schemes.of(checkpoint)
    if scheme and not scheme.engine:
        raise UserError(f"the engine does not compute {scheme.precision} as this model is quantized", option)
    model = checkpoints.load(checkpoint)
    weights = {
        name: Quantized(linear.weight.detach(), linear.weight_scale)
        for name, linear in quantized.linears(model).items()
    }
    names = list(weights) if weights else list(families.of(checkpoint.path).prunable(model))
    try:
        return convert(model, dtype=dtype, head=head, quantized=weights, names=names)
    except EngineError as error:
        raise UserError(str(error), option) from None
