"""Confidence intervals of corpus metrics by resampling items (Koehn 2004, "Statistical significance tests for MT").

A corpus metric is a function of sums over items (n-gram matches, errors and words), so a resample costs one product of
how often each item was drawn with the items' statistics; nothing is scored again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """Score of the second model, or the mean of several, minus that of the first."""
    low: float
    high: float
    p: float
    """Share of resamples in which the two are equal or in the opposite order; one-sided."""


def interval(stats_NK: Array, score: Score, samples: int, seed: int) -> Interval | None:
    """Returns the standard error and the 95 % percentile interval of the score. None for fewer than two items, which do
    not vary."""
    if len(stats_NK) < 2:
        return None
    score_S = score(resampled(stats_NK, samples, seed))
    low, high = _percentiles(score_S)
    return Interval(float(score_S.std(ddof=1)), low, high)


def paired(a_RNK: Sequence[Array], b_RNK: Sequence[Array], score: Score, samples: int, seed: int) -> Difference:
    """Returns the mean score of the models b minus that of the models a on the same N items, all resampled with the
    same draws.

    Several models (seeds of a training) are resampled as well: an interval that knew the items alone would call a lucky
    seed a difference. Equal numbers on both sides are taken for pairs, r-th with r-th.
    """
    models = [*a_RNK, *b_RNK]
    assert all(stats_NK.shape == models[0].shape for stats_NK in models)
    scores_R = np.array([score(stats_NK.sum(0)[None])[0] for stats_NK in models])
    of_a = len(a_RNK)
    value = float(scores_R[of_a:].mean() - scores_R[:of_a].mean())
    sums_SRK = np.split(resampled(np.concatenate(models, axis=1), samples, seed), len(models), axis=1)
    scores_RS = np.stack([score(sums_SK) for sums_SK in sums_SRK])
    draw = np.random.default_rng(seed)
    a_RS = draw.integers(of_a, size=(of_a, samples))
    b_RS = a_RS if len(b_RNK) == of_a else draw.integers(len(b_RNK), size=(len(b_RNK), samples))
    a_S, b_S = (np.take_along_axis(s, chosen_RS, 0).mean(0) for s, chosen_RS in
                ((scores_RS[:of_a], a_RS), (scores_RS[of_a:], b_RS)))  # fmt: skip
    difference_S = b_S - a_S
    low, high = _percentiles(difference_S)
    return Difference(value, low, high, float((difference_S * np.sign(value) <= 0).mean()))


def resampled(stats_NK: Array, samples: int, seed: int) -> Array:
    """Returns `sums_SK`: statistics summed over N items drawn with replacement, `samples` times."""
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
