"""Converts a transformers model so that the engine computes its linears."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from engine.errors import EngineError
from engine.linear import EngineLinear, fuse
from engine.reach import not_replaceable
from engine.unfused import unfuse_
from engine.weights import DTYPES, DType, PackedWeight, Quantized


@torch.no_grad()
def convert(
    model: Any,
    *,
    dtype: DType,
    head: DType = "fp32",
    quantized: Mapping[str, Quantized] | None = None,
    keep_dense: bool = False,
    names: Iterable[str] | None = None,
) -> Any:
    """Replaces, in place, the model's linears except its head (or those named `names`), and returns the model in fp32,
    in eval mode and without gradients. Linears of decoder-only models that are not only called are left
    (`engine.reach`).

    The engine skips zeros of their weights, unless `keep_dense` requests the same kernels without skipping. `quantized`
    holds int8 weights to be used unchanged, by name; they need dtype "int8". `head` other than "fp32" replaces the
    output head too. Raises EngineError for what cannot be converted.
    """
    quantized = quantized or {}
    if dtype not in DTYPES or head not in DTYPES:
        raise EngineError(f"no dtype {dtype!r} or head {head!r}; there are: {', '.join(DTYPES)}")
    if quantized and dtype != "int8":
        raise EngineError(f"the checkpoint is quantized to int8; expected dtype int8, not {dtype}")
    unfuse_(model)
    model.float().requires_grad_(False).eval()
    head_name = _name_of(model, model.get_output_embeddings())
    undecided = (names is None or head != "fp32") and not model.config.is_encoder_decoder
    alone = not_replaceable(model) if undecided else {}
    if names is None:
        names = dict.fromkeys([*(name for name in _linears(model, head_name) if name not in alone), *quantized])
    chosen = list(names)
    if odd := sorted(quantized.keys() - set(chosen)):
        raise EngineError(f"{odd[0]} is quantized and is not among the linears to convert")
    for name in chosen:
        linear = model.get_submodule(name)
        weight = quantized.get(name)
        if weight is None:
            packed = PackedWeight.of(_weight(name, linear), dtype, keep_dense=keep_dense)
        else:
            packed = PackedWeight.of_int8(weight.q_OI, weight.scale_O, keep_dense=keep_dense)
        model.set_submodule(name, EngineLinear(packed, linear.bias))
    if head != "fp32":
        if head_name is None:
            raise EngineError("this model has no output head to convert; leave head at fp32")
        if head_name in alone:
            raise EngineError(f"the output head cannot be converted: {alone[head_name]}; leave head at fp32")
        linear = model.get_submodule(head_name)
        packed = PackedWeight.of(_weight(head_name, linear), head, keep_dense=True)
        model.set_submodule(head_name, EngineLinear(packed, linear.bias))
    fuse(model)
    return model


def _linears(model: nn.Module, without: str | None) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != without]


def _weight(name: str, linear: nn.Module) -> torch.Tensor:
    weight = getattr(linear, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        raise EngineError(f"{name} is a {type(linear).__name__}, expected a linear in floating point")
    return weight


def _name_of(model: nn.Module, module: nn.Module | None) -> str | None:
    return (
        next((name for name, found in model.named_modules() if found is module), None) if module is not None else None
    )
