"""Exact swaps between kept and pruned weights of a row (arXiv 2512.10922). Pure functions of tensors.

With the pruned part `c = w ⊙ (1 - m)` of a row, its error is `cᵀ H c`. Pruning u and growing v instead changes it by
`own_u + own_v - 2 w_u w_v H_uv` with `own_u = 2 w_u g_u + w_u² H_uu`, `own_v = -2 w_v g_v + w_v² H_vv`, `g = H c`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.prune.selection import Target

PAIRS_AT_ONCE = 1 << 24
FRESH_EVERY = 50
"""Swaps after which `g` is computed anew, since its rounding errors add up."""
SMALLEST_GAIN = 1e-6
"""Share of a row's error: swaps that gain less end its search."""


@torch.no_grad()
def refine(
    W_OI: Tensor, keep_OI: Tensor, H_II: Tensor, goal: Target, kept_OI: Tensor | None, swaps: int, candidates: int
) -> Tensor:
    """Returns `keep_OI` after at most `swaps` of each row, each the best of its pairs. Counts of rows (N:M: of groups)
    stay; what `kept_OI` prunes is not grown. `H_II` is complete and symmetric."""
    keep_OI = keep_OI.clone()
    may_grow_OI = torch.ones_like(keep_OI) if kept_OI is None else kept_OI
    width = goal[1] if isinstance(goal, tuple) else candidates or W_OI.shape[1]
    at_once = max(PAIRS_AT_ONCE // (width * (W_OI.shape[1] if isinstance(goal, tuple) else width)), 1)
    for rows in torch.split(torch.arange(len(W_OI), device=W_OI.device), at_once):
        keep_OI[rows] = _refine_rows(W_OI[rows], keep_OI[rows], H_II, may_grow_OI[rows], goal, swaps, width)
    return keep_OI


def _refine_rows(
    W_OI: Tensor, keep_OI: Tensor, H_II: Tensor, may_grow_OI: Tensor, goal: Target, swaps: int, width: int
) -> Tensor:
    found_OI = keep_OI
    rows_R = torch.arange(len(W_OI), device=W_OI.device)
    W, keep, grow = W_OI, keep_OI.clone(), may_grow_OI
    g_RI = _pull(W, keep, H_II)
    for number in range(1, swaps + 1):
        error_R = (W.masked_fill(keep, 0) * g_RI).sum(1)
        change_R, u_R, v_R = best_pair(W, keep, grow, g_RI, H_II, goal, width)
        better_R = change_R < -SMALLEST_GAIN * error_R
        if not better_R.all():
            found_OI[rows_R] = keep
            rows_R, W, keep, grow, g_RI = (it[better_R] for it in (rows_R, W, keep, grow, g_RI))
            u_R, v_R = u_R[better_R], v_R[better_R]
        if not len(rows_R):
            return found_OI
        at_R = torch.arange(len(rows_R), device=W.device)
        keep[at_R, u_R], keep[at_R, v_R] = False, True
        if number % FRESH_EVERY:
            g_RI += W[at_R, u_R, None] * H_II[u_R] - W[at_R, v_R, None] * H_II[v_R]
        else:
            g_RI = _pull(W, keep, H_II)
    found_OI[rows_R] = keep
    return found_OI


def _pull(W_RI: Tensor, keep_RI: Tensor, H_II: Tensor) -> Tensor:
    return W_RI.masked_fill(keep_RI, 0) @ H_II


def best_pair(
    W_RI: Tensor, keep_RI: Tensor, grow_RI: Tensor, g_RI: Tensor, H_II: Tensor, goal: Target, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns for each row the change of the error, the weight u to prune and the weight v to grow: the best pair of
    the `width` best of either; N:M: of all pairs in the groups. The change is infinite for a row without a pair."""
    square_RI = W_RI.square() * H_II.diagonal()
    own_u_RI = (2 * W_RI * g_RI + square_RI).masked_fill(~keep_RI, torch.inf)
    own_v_RI = (square_RI - 2 * W_RI * g_RI).masked_fill(keep_RI | ~grow_RI, torch.inf)
    rows, num_inputs = W_RI.shape
    if isinstance(goal, tuple):
        group = goal[1]
        u_RUC = torch.arange(num_inputs, device=W_RI.device).view(1, -1, group).expand(rows, -1, -1)
        v_RVC = u_RUC
    else:
        width = min(width, num_inputs)
        u_RUC = own_u_RI.topk(width, largest=False).indices[:, None]
        v_RVC = own_v_RI.topk(width, largest=False).indices[:, None]
    groups, width = u_RUC.shape[1:]

    def at(values_RI: Tensor, index: Tensor) -> Tensor:
        return values_RI.gather(1, index.reshape(rows, -1)).reshape(rows, groups, width)

    change = at(own_u_RI, u_RUC)[..., :, None] + at(own_v_RI, v_RVC)[..., None, :]
    change = (
        change
        - 2
        * at(W_RI, u_RUC)[..., :, None]
        * at(W_RI, v_RVC)[..., None, :]
        * H_II[u_RUC[..., :, None], v_RVC[..., None, :]]
    )
    change_R, best_R = change.reshape(rows, -1).min(1)
    group_R, pair_R = best_R // width**2, best_R % width**2
    at_R = torch.arange(rows, device=W_RI.device)
    return change_R, u_RUC[at_R, group_R, pair_R // width], v_RVC[at_R, group_R, pair_R % width]
