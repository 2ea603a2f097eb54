"""The same sparsity in every linear."""

from __future__ import annotations

from collections.abc import Mapping


def uniform(shapes: Mapping[str, tuple[int, int]], sparsity: float) -> dict[str, float]:
    return dict.fromkeys(shapes, sparsity)


ALLOCATION = uniform
