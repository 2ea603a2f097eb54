"""SparseGPT (arXiv 2301.00774): one-shot pruning of linears with error compensation. Pure functions of tensors.

Shapes: `W_OI` weight (out, in); `X_TI` inputs (tokens, in); `H_II` Hessian; B the columns of a block. Inside, weights
stand transposed, `W_IO`: a column of W is then contiguous, and so is a block of columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.contracts import UserError
from stages.prune.selection import Target, block_counts, check_divides, prune_lowest

TOKENS_AT_ONCE = 2048
COLUMNS_AT_ONCE = 256
"""Columns of a piece of the product XᵀX that stays in a core's cache."""
PANEL = 16
"""Columns that are compensated one by one before the rest of the block is compensated by one product."""


@dataclass(frozen=True)
class Factor:
    """Upper `R_II` with R Rᵀ = H + λI, and its damping.

    SparseGPT's U = chol((H + λI)⁻¹) is R⁻¹; the inverse of a whole Hessian is never needed.
    """

    R_II: Tensor
    dead: Tensor
    """bool (in): inputs that were always 0. Their weights have no effect and become 0."""
    damping: float
    """λ relative to the mean of H's diagonal; larger than configured if H was not positive definite."""


@torch.no_grad()
def accumulate_(H_II: Tensor, X_TI: Tensor, seen: int) -> int:
    """Adds the tokens of `X_TI` to the running mean `H = (2/n) Σ x xᵀ`, in place; returns the new n.

    Only the upper triangle of H is maintained, and read by `factor` and `relative_error`. Products of bf16 inputs are
    exact and are summed in fp32, by the CPU's bf16 instructions if it has them.
    """
    exact_in_bf16 = X_TI.dtype == torch.bfloat16 and X_TI.device.type == "cpu"
    num_inputs = len(H_II)
    mkldnn: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = mkldnn.fp32_precision
    mkldnn.fp32_precision = "bf16" if exact_in_bf16 else "ieee"
    try:
        for part_TI in torch.split(X_TI, TOKENS_AT_ONCE):
            X = part_TI.float()
            total = seen + len(X)
            for at in range(0, num_inputs, COLUMNS_AT_ONCE):
                columns = slice(at, at + COLUMNS_AT_ONCE)
                H_II[columns, at:].addmm_(X[:, columns].T, X[:, at:], beta=seen / total, alpha=2 / total)
            seen = total
    finally:
        mkldnn.fp32_precision = before
    return seen


@torch.no_grad()
def factor(H_II: Tensor, damping: float, max_damping: float) -> Factor:
    """Factors the damped inverse of a Hessian: λ = damping · mean of the diagonal of the inputs that are not dead.

    If H + λI is not positive definite, λ grows tenfold up to `max_damping`; beyond that, or when H is not finite,
    raises UserError.
    """
    diagonal_I = H_II.diagonal()
    # no other entry is larger than those of the diagonal
    if not torch.isfinite(diagonal_I).all():
        raise UserError("its inputs on the calibration samples are not finite (NaN or infinity)", "model.path")
    dead = diagonal_I == 0
    mean = float(diagonal_I[~dead].mean()) if not dead.all() else 1.0
    used = damping
    while True:
        # the lower factor of the flipped matrix, flipped back, is the upper R
        damped_II = H_II.flip(0, 1)
        damped_II.diagonal().add_(dead.flip(0) + used * mean)
        lower_II, failed = torch.linalg.cholesky_ex(damped_II)
        if not failed and torch.isfinite(lower_II.diagonal()).all():
            return Factor(lower_II.flip(0, 1), dead, used)
        if used * 10 > max_damping * (1 + 1e-9):
            raise UserError(f"its Hessian is not positive definite with a damping of {used:g}", "prune.max_damping")
        used *= 10


@torch.no_grad()
def prune(
    weights: Sequence[Tensor], shared: Factor, goal: Target, block_size: int, kept: Sequence[Tensor | None]
) -> tuple[list[Tensor], list[Tensor]]:
    """Prunes linears that see the same input; returns `W_OI` of each in fp32, pruned and compensated, and their
    `keep_OI`.

    Unstructured: exactly round(numel · sparsity) weights of each linear's block of columns are pruned, by `w² / U_jj²`
    on the weights as compensated when the block begins. N:M: the M - N lowest of each row's M columns, chosen when the
    first of them is reached. What an earlier `keep_OI` prunes stays pruned and counts; if it prunes more of a block
    than configured, the linear's other blocks prune fewer. Linears share the updates of the columns; their counts are
    their own. Raises UserError when M does not divide the inputs.
    """
    rows = [len(W_OI) for W_OI in weights]
    W_IO = torch.cat([W_OI.float() for W_OI in weights]).T.contiguous()
    keep_IO = torch.cat(
        [torch.ones_like(W, dtype=torch.bool) if keep is None else keep for W, keep in zip(weights, kept, strict=True)]
    ).T.contiguous()
    if not torch.isfinite(W_IO).all():
        raise UserError("its weights are not finite (NaN or infinity)", "model.path")
    W_IO[shared.dead] = 0
    num_inputs = len(W_IO)
    group = goal[1] if isinstance(goal, tuple) else 1
    check_divides(num_inputs, group)
    block_size = math.ceil(block_size / group) * group
    counts = (
        []
        if isinstance(goal, tuple)
        else [block_counts(keep.T, goal, block_size) for keep in torch.split(keep_IO, rows, dim=1)]
    )
    change_IO = torch.empty_like(W_IO)
    for start in range(0, num_inputs, block_size):
        stop = min(start + block_size, num_inputs)
        W_BO, keep_BO = W_IO[start:stop], keep_IO[start:stop]
        R_BB = shared.R_II[start:stop, start:stop]
        identity_BB = torch.eye(stop - start, dtype=R_BB.dtype, device=R_BB.device)
        U_BB = torch.linalg.solve_triangular(R_BB, identity_BB, upper=True)
        original_BO = W_BO.clone()
        # the changes of all earlier blocks, compensated as far as this block alone can
        W_BO.addmm_((shared.R_II[:start, start:stop] @ U_BB).T, change_IO[:start])
        if not isinstance(goal, tuple):
            _choose_(keep_BO, W_BO, U_BB, rows, [of_linear[start // block_size] for of_linear in counts])
        _compensate_(W_BO, keep_BO, U_BB, goal if isinstance(goal, tuple) else None)
        torch.sub(original_BO, W_BO, out=change_IO[start:stop])
    return (
        [W.T.contiguous() for W in torch.split(W_IO, rows, dim=1)],
        [keep.T.contiguous() for keep in torch.split(keep_IO, rows, dim=1)],
    )


def _choose_(keep_BO: Tensor, W_BO: Tensor, U_BB: Tensor, rows: list[int], counts: list[int]) -> None:
    """Sets `keep_BO` of an unstructured block, each linear by itself, so that it prunes its count."""
    scores_BO = (W_BO / U_BB.diagonal()[:, None]).square_()
    linears = zip(torch.split(scores_BO, rows, dim=1), torch.split(keep_BO, rows, dim=1), counts, strict=True)
    for scores, keep, count in linears:
        keep.copy_(prune_lowest(scores.reshape(1, -1), keep.reshape(1, -1), count).reshape(keep.shape))


def _compensate_(W_BO: Tensor, keep_BO: Tensor, U_BB: Tensor, keep_of: tuple[int, int] | None) -> None:
    """Goes through the columns of a block, zeroes pruned weights and lets the later columns compensate.

    N:M: also sets `keep_BO`.
    """
    diagonal_B = U_BB.diagonal()
    error_BO = torch.empty_like(W_BO)
    keep_num, group = keep_of or (0, 1)
    panel_size = math.ceil(PANEL / group) * group
    columns, errors = W_BO.unbind(0), error_BO.unbind(0)
    scales = list(((~keep_BO) / diagonal_B[:, None]).unbind(0))
    for start in range(0, len(W_BO), panel_size):
        stop = min(start + panel_size, len(W_BO))
        for j in range(start, stop):
            if keep_of and j % group == 0:
                span = slice(j, j + group)
                scores_OM = (W_BO[span] / diagonal_B[span, None]).square_().T.contiguous()
                keep_BO[span] = prune_lowest(scores_OM, keep_BO[span].T, group - keep_num).T
                scales[span] = ((~keep_BO[span]) / diagonal_B[span, None]).unbind(0)
            torch.mul(columns[j], scales[j], out=errors[j])
            W_BO[j + 1 : stop].addr_(U_BB[j, j + 1 : stop], errors[j], alpha=-1)
        W_BO[stop:].addmm_(U_BB[start:stop, stop:].T, error_BO[start:stop], alpha=-1)
    W_BO.masked_fill_(~keep_BO, 0)


def relative_error(W_OI: Tensor, pruned_OI: Tensor, H_II: Tensor) -> float:
    """Returns `‖(W - Ŵ)X‖² / ‖WX‖²` over the calibration tokens, by their Hessian; 0 where W X is 0."""
    whole = _energy(W_OI.float(), H_II)
    return max(_energy(W_OI.float() - pruned_OI.float(), H_II), 0.0) / whole if whole > 0 else 0.0


def _energy(A_OI: Tensor, H_II: Tensor) -> float:
    """Returns `tr(A H Aᵀ)` from H's upper triangle: each product off the diagonal counts twice."""
    total = 0.0
    for at in range(0, len(H_II), COLUMNS_AT_ONCE):
        block, rest = slice(at, at + COLUMNS_AT_ONCE), slice(at + COLUMNS_AT_ONCE, None)
        A_OB, H_BB = A_OI[:, block], H_II[block, block].triu()
        total += float(((A_OB @ (H_BB + H_BB.triu(1).T)) * A_OB).sum())
        total += 2 * float(((A_OB @ H_II[block, rest]) * A_OI[:, rest]).sum())
    return total
