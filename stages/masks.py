"""Masks: which weights of a pruned linear are kept. Stored, never inferred from zeros.

`Masks` maps the dotted name of a linear to a bool tensor `keep_OI` (True = kept). On disk: one bit a weight, row by
row, in safetensors; the header holds the shape.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stages.contracts import Checkpoint

Masks = dict[str, Tensor]
FORMAT = "squarehead-masks-1"


def save(masks: Mapping[str, Tensor], path: Path) -> None:
    shapes = {name: list(keep_OI.shape) for name, keep_OI in masks.items()}
    packed = {name: torch.from_numpy(np.packbits(keep_OI.numpy())) for name, keep_OI in masks.items()}
    # one key: safetensors writes several in any order, and equal masks shall be equal files
    save_file(packed, path, metadata={FORMAT: json.dumps(shapes)})


def load(path: Path) -> Masks:
    with safe_open(path, framework="np") as file:
        shapes: dict[str, list[int]] = json.loads(file.metadata()[FORMAT])
        return {
            name: torch.from_numpy(np.unpackbits(file.get_tensor(name), count=int(np.prod(shape))).view(bool))
            .reshape(shape)
            .clone()
            for name, shape in shapes.items()
        }


def of(checkpoint: Checkpoint) -> Masks:
    """Returns the masks of a checkpoint; empty for a dense one."""
    return load(checkpoint.masks) if checkpoint.masks else {}


def digest(masks: Mapping[str, Tensor]) -> str:
    """Returns the sha256 over names, shapes and bits."""
    sha = hashlib.sha256()
    for name in sorted(masks):
        sha.update(f"{name}{list(masks[name].shape)}".encode())
        sha.update(np.packbits(masks[name].numpy()).tobytes())
    return sha.hexdigest()


def sparsity(masks: Mapping[str, Tensor]) -> float:
    """Returns the fraction of pruned weights among all weights that have a mask; 0 without masks."""
    total = sum(keep_OI.numel() for keep_OI in masks.values())
    kept = sum(int(keep_OI.sum()) for keep_OI in masks.values())
    return 1 - kept / total if total else 0.0


@torch.no_grad()
def apply_(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Zeroes the pruned weights in place."""
    for name, keep_OI in masks.items():
        weight_OI = model.get_parameter(f"{name}.weight")
        weight_OI.mul_(keep_OI.to(weight_OI.device))


@torch.no_grad()
def check(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Asserts that every pruned weight of `model` is exactly zero."""
    for name, keep_OI in masks.items():
        weight_OI = model.get_parameter(f"{name}.weight")
        assert weight_OI.shape == keep_OI.shape, f"{name}: weight {weight_OI.shape}, mask {keep_OI.shape}"
        revived = int(torch.count_nonzero(weight_OI.masked_fill(keep_OI.to(weight_OI.device), 0)))
        assert revived == 0, f"{name}: {revived} pruned weights are not zero"
