"""Arithmetic of forward passes."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """bf16: matrix products in bf16, the residual stream and the weights as they are stored. fp32: all as stored."""
    assert precision in ("fp32", "bf16"), f"precision {precision!r} was not resolved"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
