"""Precision of forward and backward passes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from stages.finetune.spec import Training


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Returns the context of a pass. bf16: matrix products in bf16, the residual stream and the weights as stored.
    fp32: everything as stored."""
    assert precision in ("fp32", "bf16"), f"precision {precision!r} was not resolved"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def held(training: Training) -> torch.dtype | None:
    """Returns the dtype in which student and teacher are kept while they train; None: as stored.

    fp32 computes in fp32, whatever the weights are stored in. The configuration refuses it together with stochastic
    rounding, whose purpose is to avoid fp32 copies.
    """
    rounds = training.bf16_updates == "stochastic_rounding"
    return torch.float32 if training.precision == "fp32" and not rounds else None


@contextmanager
def holding(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Converts floating-point parameters and buffers to `dtype` within the block, and rounds them back at its end. None
    changes nothing."""
    tensors = [t for t in itertools.chain(model.parameters(), model.buffers()) if t.is_floating_point()]
    stored = [tensor.dtype for tensor in tensors]
    # in place, so that what is tied or known to an optimizer stays so
    for tensor in tensors:
        tensor.data = tensor.data.to(dtype or tensor.dtype)
    try:
        yield
    finally:
        for tensor, before in zip(tensors, stored, strict=True):
            tensor.data = tensor.data.to(before)
