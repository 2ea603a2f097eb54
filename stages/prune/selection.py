"""Selects the weights to prune, with exact counts for every pattern, ties included. Pure functions of scores."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from stages.contracts import UserError
from stages.prune.pattern import parse_pattern
from stages.prune.pruners import PRUNERS
from stages.prune.spec import Prune

Target = float | tuple[int, int]
"""A sparsity in [0, 1), or (N, M): keep N of each M weights along the input."""


def shape_of(linear: nn.Linear) -> tuple[int, int]:
    """Returns (out, in)."""
    return linear.out_features, linear.in_features


def target(pattern: str, sparsity: float) -> Target:
    """Returns the target of a configured pattern. Raises UserError when `sparsity` is not that of N:M."""
    if pattern == "unstructured":
        return sparsity
    keep, group = parse_pattern(pattern)
    if not math.isclose(sparsity, 1 - keep / group, abs_tol=1e-9):
        raise UserError(f"prune.pattern={pattern} means sparsity={1 - keep / group:g}, got {sparsity:g}", "sparsity")
    return keep, group


def check_divides(num_inputs: int, group: int) -> None:
    if num_inputs % group:
        raise UserError(f"groups of {group} do not divide {num_inputs} input features", "prune.pattern")


def lowest(scores_RN: Tensor, count: int) -> Tensor:
    """Returns bool `chosen_RN`: exactly `count` of the lowest scores of each row; of equal scores the first ones.

    Scores must not be NaN.
    """
    if count == 0:
        return torch.zeros_like(scores_RN, dtype=torch.bool)
    if scores_RN.device.type == "cpu":
        # numpy's vectorised selection is 30 times as fast as torch.kthvalue on a CPU
        ranked_RN = np.partition(scores_RN.numpy(force=True), count - 1, axis=-1)
        threshold_R1 = torch.from_numpy(ranked_RN[:, count - 1 : count].copy())
    else:
        threshold_R1 = scores_RN.kthvalue(count, keepdim=True).values
    chosen_RN = scores_RN <= threshold_R1
    if int(chosen_RN.sum()) > count * len(scores_RN):
        tied_RN = scores_RN == threshold_R1
        spare_R1 = chosen_RN.sum(-1, keepdim=True) - count
        place_RN = tied_RN.cumsum(-1)
        chosen_RN &= ~(tied_RN & (place_RN > tied_RN.sum(-1, keepdim=True) - spare_R1))
    return chosen_RN


def prune_lowest(scores_RN: Tensor, keep_RN: Tensor, count: int | Tensor) -> Tensor:
    """Returns `keep_RN` after pruning `count` (of all rows, or `count_R`) weights of each row, including those already
    pruned.

    A row that has more pruned weights than that loses no more. Scores must not be negative.
    """
    count_R = torch.maximum((~keep_RN).sum(-1), torch.as_tensor(count, device=keep_RN.device))
    scores_RN = scores_RN.masked_fill(~keep_RN, -1)
    if len(count_R) == 0 or bool((count_R == count_R[0]).all()):
        return ~lowest(scores_RN, int(count_R[0]) if len(count_R) else 0)
    rank_RN = scores_RN.argsort(dim=-1, stable=True).argsort(dim=-1)
    return rank_RN >= count_R[:, None]


def share_out(base_U: Tensor, already_U: Tensor) -> Tensor:
    """Returns how many weights each of a linear's units (rows, blocks of columns) is to have pruned.

    It is `base_U` where possible. Units that already have more pruned weights keep that many; the others, in proportion
    to what they would have pruned anew, prune so many fewer, and the sum stays that of `base_U`. If even that is not
    enough, nothing new is pruned.
    """
    excess = int((already_U - base_U).clamp_min(0).sum())
    slack_U = (base_U - already_U).clamp_min(0)
    counts_U = torch.maximum(base_U, already_U)
    total = int(slack_U.sum())
    if not excess:
        return counts_U
    if excess >= total:
        return already_U
    fewer_U = slack_U * excess // total
    # the remainder goes one by one to the first units that can take it
    rest = excess - int(fewer_U.sum())
    takers_U = (slack_U > fewer_U).cumsum(0)
    fewer_U += (slack_U > fewer_U) & (takers_U <= rest)
    return counts_U - fewer_U


def block_counts(keep_OI: Tensor, sparsity: float, block_size: int) -> list[int]:
    """Returns how many weights SparseGPT is to prune in each block of columns; those pruned already count."""
    blocks = torch.split(keep_OI, block_size, dim=1)
    base_U = torch.tensor([round(block.numel() * sparsity) for block in blocks])
    already_U = torch.tensor([int((~block).sum()) for block in blocks])
    return [int(count) for count in share_out(base_U, already_U)]


def without_lowest(scores_OI: Tensor, goal: Target, kept_OI: Tensor | None, per_row: bool) -> Tensor:
    """Returns `keep_OI` without the lowest scores: of each row, of the whole linear, or (N:M) of each M along the
    input.

    What `kept_OI` prunes stays pruned and counts. Raises UserError for scores that are not finite.
    """
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


def num_pruned(rows: int, columns: int, goal: Target, config: Prune, kept_OI: Tensor | None = None) -> int:
    """Returns how many weights of a (rows x columns) linear a pruner prunes: its promise, asserted by the stage.

    If `kept_OI` already prunes more, of the linear or (N:M) of a group, that count stays.
    """
    if isinstance(goal, tuple):
        keep, group = goal
        if kept_OI is None:
            return rows * columns // group * (group - keep)
        check_divides(columns, group)
        return int((~kept_OI).reshape(-1, group).sum(-1).clamp_min(group - keep).sum())
    asked = PRUNERS.get(config.method).count(rows, columns, goal, config)
    return asked if kept_OI is None else max(asked, int((~kept_OI).sum()))
