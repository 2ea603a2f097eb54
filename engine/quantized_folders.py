"""Folders of W8A8 models: config.json lists what is quantized, a safetensors file holds the numbers.

For each quantized linear NAME the file holds `NAME.weight` (int8, O x I) and `NAME.weight_scale` (O x 1, in the dtype
of the rest): the format `int-quantized` of compressed-tensors, which transformers and vLLM read. A folder that stock
loaders would misread states the method `squarehead` instead, and its file has a name that they do not look for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from engine import skeleton
from engine.errors import EngineError
from engine.weights import Quantized

COMPRESSED_TENSORS, OWN = "compressed-tensors", "squarehead"
WEIGHTS = {COMPRESSED_TENSORS: "model.safetensors", OWN: "int8.safetensors"}
"""File with the numbers, by quant_method."""
FORMAT = "int-quantized"
W8A8: dict[str, dict[str, Any]] = {
    "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
    "input_activations": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True},
}
"""The arithmetic of this project, in the notation of compressed-tensors."""


def quantization_config(folder: Path) -> dict[str, Any] | None:
    """Returns the quantization section of config.json; None for a model in floating point.

    Raises EngineError for a folder of an earlier version.
    """
    try:
        found = json.loads((folder / "config.json").read_bytes()).get("quantization_config")
    except (OSError, ValueError, AttributeError):
        return None  # the loader of models in floating point reports what is wrong
    if found is None and (folder / "quantization.json").exists():
        raise EngineError(
            f"{folder} was quantized by an earlier version, in a format no longer read; quantize it again"
        )
    return found  # type: ignore[no-any-return]


def load(
    folder: Path, model: nn.Module, place: Callable[[nn.Linear, Quantized], nn.Module], dtype: torch.dtype | None
) -> dict[str, Quantized]:
    """Loads the tensors of the folder into `model`, which is the architecture of config.json; returns the quantized
    weights by the dotted names of their linears.

    `place` makes the module that replaces a quantized linear in the model, with the linear's bias; it may be the linear
    itself. `dtype` is that of everything else in floating point; None keeps the stored one. Raises EngineError for
    files that are damaged, quantized in another way, or of another architecture.
    """
    quantized, tensors = _read(folder)
    if dtype is not None:
        tensors = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    in_place = {f"{name}.{part}" for name in quantized for part in ("weight", "weight_scale")}
    try:
        for name, weight in quantized.items():
            model.set_submodule(name, place(_linear(model, name, weight), weight))
        skeleton.assign(model, tensors, in_place, dtype)
    except EngineError as error:
        raise EngineError(f"{folder}: the quantized checkpoint cannot be read: {error}") from None
    return quantized


def _read(folder: Path) -> tuple[dict[str, Quantized], dict[str, Tensor]]:
    """Returns the quantized weights by the dotted names of their linears, and all other tensors by theirs."""
    config = quantization_config(folder)
    if not isinstance(config, dict) or config.get("quant_method") not in WEIGHTS:
        raise EngineError(f"{folder}: expected a quantization_config of one of the methods {', '.join(WEIGHTS)}")
    if reason := _another_way(config):
        raise EngineError(f"{folder}: {reason}; only int8 weights per channel with int8 activations per token are read")
    file = folder / WEIGHTS[config["quant_method"]]
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise EngineError(f"{folder}: the quantized checkpoint cannot be read: {error}") from None
    names = [key.removesuffix(".weight") for key, tensor in tensors.items() if tensor.dtype == torch.int8]
    quantized = {name: _take(folder, name, tensors) for name in names}
    if odd := [key for key in tensors if key.endswith(".weight_scale")]:
        raise EngineError(f"{folder}: {odd[0]} has no int8 weight beside it")
    return quantized, tensors


def _another_way(config: dict[str, Any]) -> str | None:
    """Returns how the model is quantized, if that is not W8A8 as here."""
    if config.get("format") != FORMAT:
        return f"the format is {config.get('format')!r}, expected {FORMAT!r}"
    for group in config.get("config_groups", {}).values():
        if group.get("output_activations"):
            return "output activations are quantized"
        for part, expected in W8A8.items():
            found = group.get(part) or {}
            for key, value in expected.items():
                if found.get(key) != value:
                    return f"{part}.{key} is {found.get(key)!r}, expected {value!r}"
    return None


def _take(folder: Path, name: str, tensors: dict[str, Tensor]) -> Quantized:
    q_OI, scale = tensors.pop(f"{name}.weight", None), tensors.pop(f"{name}.weight_scale", None)
    if q_OI is None or scale is None or q_OI.dim() != 2 or scale.shape != (len(q_OI), 1):
        raise EngineError(f"{folder}: {name} has no int8 weight with a scale for each output")
    return Quantized(q_OI, scale[:, 0].float())


def _linear(model: nn.Module, name: str, weight: Quantized) -> nn.Linear:
    try:
        linear = model.get_submodule(name)
    except AttributeError:
        linear = None
    if not isinstance(linear, nn.Linear) or linear.weight.shape != weight.q_OI.shape:
        raise EngineError(f"{name} is {list(weight.q_OI.shape)}, the architecture in config.json has no such linear")
    return linear
