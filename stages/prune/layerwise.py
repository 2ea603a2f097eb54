"""Layer-wise reconstruction: the weights, under a mask, whose outputs come nearest to the dense linear's.

`min ‖(W0 - W) X‖² + λ ‖W0 - W‖²` over W that is 0 where the mask prunes, λ relative to the mean of H's diagonal. Solved
in inputs of unit norm: `V = W · scale`, `A = (H + λI) / (scale scaleᵀ)`, whose diagonal is 1, which makes plain
conjugate gradients the preconditioned ones. ADMM: arXiv 2401.02938; ALPS and its last step: arXiv 2406.07831. Pure
functions of tensors.

Shapes: `W_OI`, `V_OI` weights (out, in) of linears that see the same input, stacked along O where rows do not depend on
each other; `A_II` whole and symmetric; `scale_I`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.contracts import UserError
from stages.prune.selection import Target, without_lowest

SMALL = 1e-6
"""A row is solved when its residual has fallen to this share of its initial one."""


@dataclass(frozen=True)
class Problem:
    """The Hessian of the inputs, scaled to unit norm."""

    A_II: Tensor
    scale_I: Tensor  # noqa: N815 (shape)


@torch.no_grad()
def problem(H_II: Tensor, damping: float) -> Problem:
    """Builds the problem from the upper triangle of a Hessian; inputs that were always 0 count as if they had the
    damping alone.

    Raises UserError if the inputs are not finite.
    """
    diagonal_I = H_II.diagonal()
    if not torch.isfinite(diagonal_I).all():
        raise UserError("its inputs on the calibration samples are not finite (NaN or infinity)", "model.path")
    seen = diagonal_I[diagonal_I > 0]
    added = damping * (float(seen.mean()) if len(seen) else 1.0)
    scale_I = (diagonal_I + added).sqrt()
    A_II = H_II.triu(1) / torch.outer(scale_I, scale_I)
    A_II = A_II + A_II.T
    A_II.diagonal().fill_(1)
    return Problem(A_II, scale_I)


@torch.no_grad()
def conjugate_gradients(V_OI: Tensor, V0_OI: Tensor, keep_OI: Tensor, A_II: Tensor, iterations: int) -> Tensor:
    """Returns `V_OI` nearer to the optimum of its mask, each row by itself. The error falls with every iteration, and
    is exact after as many as a row keeps weights. Starts from `V_OI`, which is 0 where the mask prunes."""
    V_OI = V_OI.clone()
    residual_OI = ((V0_OI - V_OI) @ A_II).masked_fill_(~keep_OI, 0)
    direction_OI = residual_OI.clone()
    square_O1 = residual_OI.square().sum(1, keepdim=True)
    solved_O1 = square_O1 * SMALL**2
    for _ in range(iterations):
        turned_OI = (direction_OI @ A_II).masked_fill_(~keep_OI, 0)
        curvature_O1 = (direction_OI * turned_OI).sum(1, keepdim=True)
        goes_on_O1 = (square_O1 > solved_O1) & (curvature_O1 > 0)
        if not goes_on_O1.any():
            break
        step_O1 = torch.where(goes_on_O1, square_O1 / curvature_O1.clamp_min(1e-38), 0)
        V_OI += step_O1 * direction_OI
        residual_OI -= step_O1 * turned_OI
        before_O1, square_O1 = square_O1, residual_OI.square().sum(1, keepdim=True)
        direction_OI = residual_OI + square_O1 / before_O1.clamp_min(1e-38) * direction_OI
    return V_OI


def solved(
    dense: Sequence[Tensor], weights: Sequence[Tensor], keeps: Sequence[Tensor], shared: Problem, iterations: int
) -> list[Tensor]:
    """Returns `W_OI` of linears that see the same input, from `weights` by conjugate gradients on their masks."""
    V0_OI = torch.cat([W_OI.float() for W_OI in dense]) * shared.scale_I
    V_OI = torch.cat([W_OI.float() for W_OI in weights]) * shared.scale_I
    V_OI = conjugate_gradients(V_OI, V0_OI, torch.cat(list(keeps)), shared.A_II, iterations)
    return list(torch.split(V_OI / shared.scale_I, [len(W_OI) for W_OI in dense]))


def distance(V_OI: Tensor, V0_OI: Tensor, A_II: Tensor) -> float:
    """Returns `tr((V - V0) A (V - V0)ᵀ)`, which reconstruction minimises."""
    change_OI = V_OI - V0_OI
    return float(((change_OI @ A_II) * change_OI).sum())


@torch.no_grad()
def admm(V0_OI: Tensor, keep_OI: Tensor, A_II: Tensor, penalty: float, iterations: int) -> Tensor:
    """Returns the optimum of a mask by splitting: all weights follow the inputs, a copy of them the mask."""
    identity_II = torch.eye(len(A_II), dtype=A_II.dtype, device=A_II.device)
    inverse_II = torch.cholesky_inverse(torch.linalg.cholesky(A_II + penalty * identity_II))
    pull_OI = V0_OI @ A_II
    V_OI, dual_OI = V0_OI.clone(), torch.zeros_like(V0_OI)
    for _ in range(iterations):
        masked_OI = (V_OI + dual_OI).masked_fill(~keep_OI, 0)
        dual_OI += V_OI - masked_OI
        V_OI = (pull_OI + penalty * (masked_OI - dual_OI)) @ inverse_II
    return (V_OI + dual_OI).masked_fill(~keep_OI, 0)


@dataclass(frozen=True)
class Spectrum:
    """`A = Q diag(values) Qᵀ`, computed once for all linears that see the same input and for every penalty."""

    Q_II: Tensor
    values_I: Tensor  # noqa: N815 (shape)


def spectrum(A_II: Tensor) -> Spectrum:
    values_I, Q_II = torch.linalg.eigh(A_II)
    return Spectrum(Q_II, values_I.clamp_min(0))


FIRST_PENALTY = 0.1
RAISE_EVERY = 3
FASTEST, FAST, SLOW = (0.1, 1.3), (0.005, 1.2), (0.0, 1.1)
"""Pairs of a share of the support that changed and the factor of the penalty."""
STABLE_SHARE, MIN_ITERATIONS = 3e-4, 30
"""The search ends where less of the support changes, after as many iterations."""


@torch.no_grad()
def alps_mask(
    V0_OI: Tensor, A_II: Tensor, shared: Spectrum, goal: Target, kept_OI: Tensor | None, iterations: int
) -> Tensor:
    """Returns the mask `keep_OI` of one linear by ALPS's search: ADMM whose penalty rises while the support still
    changes.

    Counts are exact over the linear (N:M: in each group); what `kept_OI` prunes stays pruned.
    """
    pull_OI = V0_OI @ A_II
    V_OI, dual_OI, penalty = V0_OI, torch.zeros_like(V0_OI), FIRST_PENALTY
    keep_OI = without_lowest(V_OI.abs(), goal, kept_OI, per_row=False)
    D_OI = V_OI.masked_fill(~keep_OI, 0)
    size = max(int(keep_OI.sum()), 1)
    earlier_OI, has_risen = keep_OI, False
    for number in range(1, iterations + 1):
        V_OI = ((pull_OI - dual_OI + penalty * D_OI) @ shared.Q_II / (shared.values_I + penalty)) @ shared.Q_II.T
        wanted_OI = V_OI + dual_OI / penalty
        keep_OI = without_lowest(wanted_OI.abs(), goal, kept_OI, per_row=False)
        D_OI = wanted_OI.masked_fill(~keep_OI, 0)
        dual_OI = dual_OI + penalty * (V_OI - D_OI)
        if number % RAISE_EVERY:
            continue
        changed = int((keep_OI ^ earlier_OI).sum()) / size
        earlier_OI = keep_OI
        if number >= MIN_ITERATIONS and changed < STABLE_SHARE:
            break
        factor = next((factor for share, factor in (FASTEST, FAST, SLOW) if changed > share), None)
        if factor in (None, SLOW[1]) and not has_risen:
            penalty /= 5
        elif factor is None:
            break
        else:
            penalty *= factor
            has_risen = True
    return keep_OI
