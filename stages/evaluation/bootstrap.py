"""Confidence intervals of corpus metrics by resampling items (Koehn 2004, "Statistical significance tests for MT").

A corpus metric is a function of sums over items (n-gram matches, errors and words), so a resample costs one product of
how often each item was drawn with the items' statistics; nothing is scored again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Score = Callable[[Array], Array]
"""`sums_SK`, statistics summed over the items of S samples -> `score_S`."""

DRAWS_AT_ONCE = 4_000_000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    stderr: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    value: float
    """Of the second model over the first."""
    low: float
    high: float
    p: float
    """Share of resamples in which the models are level or stand in the other order; one-sided."""


def interval(stats_NK: Array, score: Score, samples: int, seed: int) -> Interval | None:
    """Standard error and 95 % percentile interval of the score. None for fewer than two items, which do not vary."""
    if len(stats_NK) < 2:
        return None
    score_S = score(resampled(stats_NK, samples, seed))
    low, high = _percentiles(score_S)
    return Interval(float(score_S.std(ddof=1)), low, high)


def paired(a_NK: Array, b_NK: Array, score: Score, samples: int, seed: int) -> Difference:
    """Score of b minus score of a on the same N items; both are resampled with the same draws."""
    assert a_NK.shape == b_NK.shape
    value = float(score(b_NK.sum(0)[None])[0] - score(a_NK.sum(0)[None])[0])
    sums_S2K = resampled(np.concatenate([a_NK, b_NK], axis=1), samples, seed)
    a_SK, b_SK = np.split(sums_S2K, 2, axis=1)
    difference_S = score(b_SK) - score(a_SK)
    low, high = _percentiles(difference_S)
    return Difference(value, low, high, float((difference_S * np.sign(value) <= 0).mean()))


def resampled(stats_NK: Array, samples: int, seed: int) -> Array:
    """`sums_SK`: statistics summed over N items drawn with replacement, `samples` times."""
    draw = np.random.default_rng(seed)
    items = len(stats_NK)
    at_once = max(1, DRAWS_AT_ONCE // items)
    return np.concatenate(
        [
            draw.multinomial(items, np.full(items, 1 / items), size=min(at_once, samples - at)) @ stats_NK
            for at in range(0, samples, at_once)
        ]
    )


def _percentiles(score_S: Array) -> tuple[float, float]:
    low, high = np.quantile(score_S, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
