"""Pruners without compensation: magnitude and Wanda (arXiv 2306.11695). Pure functions; weights are not changed."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.contracts import UserError
from stages.prune.selection import Target, check_divides, prune_lowest, share_out


def magnitude(W_OI: Tensor, goal: Target, kept_OI: Tensor | None) -> Tensor:
    """`keep_OI`: without the smallest |W| of the whole linear, or of each M along the input."""
    return _choose(W_OI.float().abs(), goal, kept_OI, per_row=False)


def wanda(W_OI: Tensor, norm_I: Tensor, goal: Target, kept_OI: Tensor | None) -> Tensor:
    """`keep_OI`: without the smallest |W_ij| · ‖X_j‖₂ of each output row, or of each M along it.

    `norm_I` is the norm of each input over the calibration tokens, at any common scale.
    """
    return _choose(W_OI.float().abs() * norm_I, goal, kept_OI, per_row=True)


def _choose(scores_OI: Tensor, goal: Target, kept_OI: Tensor | None, per_row: bool) -> Tensor:
    if not torch.isfinite(scores_OI).all():
        raise UserError("its weights or inputs are not finite (NaN or infinity)", "model.path")
    kept_OI = torch.ones_like(scores_OI, dtype=torch.bool) if kept_OI is None else kept_OI
    if isinstance(goal, tuple):
        keep, width = goal
        check_divides(scores_OI.shape[1], width)
        count: int | Tensor = width - keep
    else:
        width = scores_OI.shape[1] if per_row else scores_OI.numel()
        base = round(width * goal)
        already_R = (~kept_OI).reshape(-1, width).sum(-1)
        count = share_out(torch.full_like(already_R, base), already_R)
    return prune_lowest(scores_OI.reshape(-1, width), kept_OI.reshape(-1, width), count).reshape(scores_OI.shape)
