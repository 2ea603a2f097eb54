"""Collects the inputs of linears while a model runs over calibration samples."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from engine.unfused import RoutedLinear
from stages.contracts import UserError
from stages.families import Batch, Family
from stages.prune.walk import Walk


def useful(name: str, linear: nn.Linear, X: Tensor, batch: Batch, family: Family) -> Tensor:
    """Returns `X_TI`: the inputs of a linear at tokens that are not padding. Raises UserError if those cannot be
    identified."""
    X_TI = X.reshape(-1, X.shape[-1])
    real_N = family.input_token_mask(batch, name).flatten()
    if isinstance(linear, RoutedLinear):
        assert linear.tokens_N is not None
        real_N = real_N[linear.tokens_N]
    if bool(real_N.all()):
        return X_TI
    if len(X_TI) != len(real_N):
        raise UserError(f"{name} sees {len(X_TI)} tokens of {len(real_N)}: cannot tell which are padding", "prune.skip")
    return X_TI[real_N]


def input_norms(blocks: list[dict[str, nn.Linear]], walk: Walk) -> dict[str, Tensor]:
    """Returns `norm_I` (fp32) of each linear's inputs over the calibration tokens, by one pass through the unpruned
    model.

    `blocks`: linears by name, of each block. The norms are 1 for experts that no token reaches.
    """
    squares: dict[str, Tensor] = {}
    batch: Batch = {}

    def enter(entered: Batch) -> None:
        batch.clear()
        batch.update(entered)

    def see(name: str, linear: nn.Linear, X: Tensor) -> None:
        with torch.autocast(X.device.type, enabled=False):
            square_I = useful(name, linear, X, batch, walk.family).float().square().sum(0)
        squares[name] = squares[name] + square_I if name in squares else square_I

    for linears in blocks:
        handles = [
            linear.register_forward_pre_hook(lambda module, args, name=name: see(name, module, args[0]))
            for name, linear in linears.items()
        ]
        try:
            walk.advance(enter)
        finally:
            for handle in handles:
                handle.remove()
    return {name: _norm(squares.get(name), linear) for name, linear in _all(blocks).items()}


def _norm(square_I: Tensor | None, linear: nn.Linear) -> Tensor:
    return torch.ones(linear.in_features) if square_I is None else square_I.sqrt()


def _all(blocks: list[dict[str, nn.Linear]]) -> Mapping[str, nn.Linear]:
    return {name: linear for linears in blocks for name, linear in linears.items()}
