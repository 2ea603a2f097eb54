"""Computes the difference of two levels: item by item if both were evaluated on the same items, else by their
errors."""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot

from pipeline.reporting.analysis import Level
from pipeline.reporting.results import Results
from stages.contracts import Metrics, UserError

SAMPLES = 10_000
SEED = 0
"""Seed of the bootstrap."""
SIGMAS = 1.96
"""Half the width of a 95 % interval, in standard errors."""


@dataclass(frozen=True)
class Interval:
    """A difference with its 95 % interval."""

    value: float
    low: float
    high: float
    same_items: bool
    """Whether it comes from a paired bootstrap over the items, and over seeds if there are several."""


def interval(results: Results, a: Level, b: Level, metric: str) -> Interval | None:
    """Returns by how much the metric of `b` exceeds that of `a`. None if errors are not known, or only one has several
    seeds."""
    if paired := _paired(results, a, b, metric):
        return paired
    if a.error is None or b.error is None or len(a.each) != len(b.each):
        return None
    value, half = b.value - a.value, SIGMAS * hypot(a.error, b.error)
    return Interval(value, value - half, value + half, same_items=False)


def _paired(results: Results, a: Level, b: Level, metric: str) -> Interval | None:
    """Returns the paired interval; None if the items were not kept, cannot be read or are not the same."""
    sides = [[_items(results, evaluation) for evaluation in level.evaluations] for level in (a, b)]
    (of_a, of_b) = ([model for model in side if model] for side in sides)
    if len(of_a) < len(a.evaluations) or len(of_b) < len(b.evaluations):
        return None
    from stages.evaluate.compare import compare

    try:
        found = compare(of_a, of_b, SAMPLES, SEED)
    except (UserError, OSError, ValueError, KeyError):  # unreadable items disable the paired test
        return None
    difference = next((it.difference for it in found if it.metric == metric), None)
    return Interval(difference.value, difference.low, difference.high, True) if difference else None


def _items(results: Results, evaluation: str) -> Metrics | None:
    found = results.by_fingerprint(evaluation)
    return Metrics(found.folder, found.fingerprint) if found and found.folder else None
