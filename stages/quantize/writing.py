"""Writes quantized checkpoints: in the compressed-tensors format, or, if stock loaders would compute something else, in
one that they refuse (`engine.quantized_folders`)."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from engine.quantized_folders import COMPRESSED_TENSORS, FORMAT, OWN, W8A8, WEIGHTS
from engine.skeleton import second_names
from stages import masks
from stages.families import Family
from stages.masks import Masks
from stages.quantize.quantized import linears


def save(model: Any, pruned: Masks, config: Mapping[str, Any], out: Path) -> Path:
    """Writes config.json with `config` as its quantization_config, the weights and the masks into `out`; returns the
    weights' file.

    Floating-point tensors and the scales are stored in `model.config.dtype`. The caller writes the tokenizer. Asserts
    that pruned weights are zero.
    """
    masks.check(model, pruned)
    described = copy.copy(model.config)
    described.quantization_config = dict(config)
    described.save_pretrained(out)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(out)
    tensors = _tensors(model, stored_dtype(model))
    file = out / WEIGHTS.get(config["quant_method"], WEIGHTS[COMPRESSED_TENSORS])
    save_file(tensors, file, metadata={"format": "pt"})
    if pruned:
        masks.save(pruned, out / "masks.safetensors")
        # vLLM reads every *.safetensors of a folder unless an index says which ones hold weights
        index = {
            "metadata": {"total_size": file.stat().st_size},
            "weight_map": dict.fromkeys(sorted(tensors), file.name),
        }
        (out / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=1), encoding="utf-8")
    return file


def stored_dtype(model: Any) -> torch.dtype:
    """Returns the dtype in which the checkpoint's floating-point tensors are stored."""
    return model.config.dtype or torch.float32


def stock_model(family: Family, folder: Path) -> Any:
    """Returns the model as transformers alone builds it from a folder, without weights."""
    from transformers import AutoConfig

    with torch.device("meta"):
        return family.auto_class.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))


def misread(model: Any, stock: nn.Module, targets: Collection[str], inputs: Mapping[str, int]) -> str | None:
    """Returns in one line why stock loaders would compute something else from the compressed-tensors format; None if
    they do not. `model` is the one to store; `inputs` are the dimensions of the linears' inputs in a forward pass."""
    known = dict(stock.named_modules())
    for name in targets:
        if not isinstance(known.get(name), nn.Linear):
            return f"transformers' {type(stock).__name__} has no nn.Linear {name}"
        if inputs.get(name, 3) != 3:
            return f"{name} sees tokens without a batch dimension, which compressed-tensors rounds by one scale for all"
    if odd := sorted(stock.state_dict().keys() ^ model.state_dict().keys()):
        return f"transformers' {type(stock).__name__} has other tensors, for example {odd[0]}"
    return None


def quantization_config(stock: nn.Module, targets: Collection[str], own: bool) -> dict[str, Any]:
    """Returns the quantization_config of config.json. `own`: in the format that stock loaders refuse."""
    others = [name for name, module in stock.named_modules() if isinstance(module, nn.Linear) and name not in targets]
    return {
        "quant_method": OWN if own else COMPRESSED_TENSORS,
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], **W8A8}},
        "ignore": others,
    }


def _tensors(model: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    scales = {f"{name}.weight_scale" for name in linears(model)}
    second = second_names(model)
    return {
        name: (tensor[:, None] if name in scales else tensor).to(
            dtype if tensor.is_floating_point() else tensor.dtype
        ).contiguous()
        for name, tensor in model.state_dict().items()
        if name not in second
    }  # fmt: skip
