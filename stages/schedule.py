"""Sparsity schedules: the levels that a run passes through (arXiv 2310.06927, section 3). Torch-free."""

from __future__ import annotations

from collections.abc import Sequence


def rungs(levels: Sequence[float], sparsity: float) -> list[float]:
    """Returns the levels of a ladder on its way to `sparsity`: those below it in rising order, then `sparsity` itself.

    Runs with other targets share the lower rungs. One-shot is the ladder without levels.
    """
    return [*sorted({level for level in levels if 0 < level < sparsity}), sparsity]


def cubic(step: int, begin: int, end: int, initial: float, final: float) -> float:
    """Returns the sparsity at `step`: s_f + (s_i - s_f)(1 - t)^3, where t runs from 0 at `begin` to 1 at `end`."""
    t = min(max((step - begin) / max(end - begin, 1), 0.0), 1.0)
    return final + (initial - final) * (1.0 - t) ** 3
