"""Devices that stages compute on: the processor, or a GPU."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stages.contracts import UserError

CPU = torch.device("cpu")


def of(name: str) -> torch.device:
    """Returns the device: `cpu`, or a GPU by torch's name. Raises UserError if torch cannot compute on it."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"torch {torch.__version__} finds no GPU; expected cpu, or a build of torch with CUDA", "device"
        )
    return torch.device(name)


def moved(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Returns the batch on a device; tensors that are already there are not copied."""
    return {name: tensor.to(device) for name, tensor in batch.items()}
