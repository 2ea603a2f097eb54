"""Which weights go: exact counts for every pattern, ties included. Pure functions of scores."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pipeline.contracts import UserError
from pipeline.schema import parse_pattern

Target = float | tuple[int, int]
"""A sparsity in [0, 1), or (N, M): keep N of each M weights along the input."""


def target(pattern: str, sparsity: float) -> Target:
    """The target of a configured pattern. Raises UserError when `sparsity` is not the one that N:M means."""
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
    """bool `chosen_RN`: exactly `count` of the lowest scores of each row; of equal scores the first ones.

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


def prune_lowest(scores_RN: Tensor, keep_RN: Tensor, count: int) -> Tensor:
    """`keep_RN` after pruning exactly `count` weights of each row, those already pruned among them.

    Raises UserError when a row has more pruned weights than `count`.
    """
    already = int((~keep_RN).sum(-1).max())
    if already > count:
        raise UserError(
            f"an earlier mask prunes {already} of {scores_RN.shape[-1]} weights where this level asks for {count}; "
            "masks only grow, and their blocks and patterns must fit",
            "sparsity",
        )
    return ~lowest(scores_RN.masked_fill(~keep_RN, -1), count)


def num_pruned(rows: int, columns: int, goal: Target, method: str, block_size: int) -> int:
    """How many weights of a (rows x columns) linear a method prunes: its promise, asserted by the stage.

    SparseGPT rounds in each block of columns, Wanda in each row, magnitude once.
    """
    if isinstance(goal, tuple):
        keep, group = goal
        return rows * columns // group * (group - keep)
    if method == "wanda":
        return rows * round(columns * goal)
    if method == "magnitude":
        return round(rows * columns * goal)
    return sum(round(rows * min(block_size, columns - at) * goal) for at in range(0, columns, block_size))
