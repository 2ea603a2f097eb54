"""An allocation: the same everywhere."""

from __future__ import annotations

from collections.abc import Mapping


def evenly(shapes: Mapping[str, tuple[int, int]], sparsity: float) -> Mapping[str, float]:
    return dict.fromkeys(shapes, sparsity)


ALLOCATION = evenly
