"""The answer in a few lines: at each sparsity the best loss, whether it is one, and what it gains in speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot

from pipeline.reporting import pairs
from pipeline.reporting.cells import number, told, with_error
from pipeline.reporting.levels import Level, levels
from pipeline.reporting.study import Study
from pipeline.reporting.verdicts import SAME, SIGMAS

CERTAINTY = 0.95
"""Of Welch's test over seeds."""


@dataclass(frozen=True)
class Finding:
    """At one sparsity, the best fine-tuned models by the main metric."""

    level: str
    best: str
    value: str
    recovery: str
    margin: str
    """Over the next best."""
    speed: str


def findings(study: Study) -> list[Finding]:
    places: list[list[Level]] = []
    trained = [level for level in levels(study, study.metric) if level.rows[0].kind == "evaluate"]
    for level in sorted(trained, key=lambda level: level.sparsity):
        if places and level.sparsity - places[-1][0].sparsity < SAME:
            places[-1].append(level)
        else:
            places.append([level])
    return [_finding(study, place) for place in places]


def _finding(study: Study, rivals: Sequence[Level]) -> Finding:
    ranked = sorted(rivals, key=lambda level: level.value, reverse=study.higher_is_better(study.metric))
    best = ranked[0]
    jobs = {at for row in best.rows for at in row.jobs}
    int8 = [row for row in study.models if row.kind == "evaluate_q" and jobs & set(row.jobs)]
    fastest = (max((row.speed for row in rows if row.speed), key=lambda speed: speed.ratio, default=None)
               for rows in (best.rows, int8))  # fmt: skip
    seeds = f", mean of {len(best.each)} seeds" if len(best.each) > 1 else ""
    return Finding(
        level=f"{100 * best.sparsity:.3g} %",
        best=_called(study, best),
        value=told(study.metric, best.value, best.error),
        recovery=f"{best.recovery:.1f} % of dense{seeds}" if best.recovery is not None else seeds.lstrip(", "),
        margin=_margin(study, best, ranked[1:]),
        speed=", ".join(f"{speed.ratio:.1f}× ({speed.backend})" for speed in fastest if speed),
    )


def _called(study: Study, level: Level) -> str:
    return level.series if study.axis == "sparsity" else f"{level.series} {study.axis}={level.place:g}"


def _margin(study: Study, best: Level, others: Sequence[Level]) -> str:
    """Over the best of another series, at its own best place on the axis; or of the same, if there is no other."""
    next_best = next((level for level in others if level.series != best.series), next(iter(others), None))
    if next_best is None:
        return ""
    rival = f"{_called(study, next_best)} ({with_error(study.metric, next_best.value, next_best.error)})"
    if paired := pairs.difference(study.results, best, next_best, study.metric):
        low, high = (number(study.metric, end) for end in sorted((abs(paired.low), abs(paired.high))))
        if paired.low * paired.high > 0:
            return f"clear of {rival} on the same items, by {low} to {high}"
        return f"not told apart from {rival} on the same items"
    if len(best.each) > 1 and len(next_best.each) > 1:
        from scipy.stats import ttest_ind

        apart = ttest_ind(best.each, next_best.each, equal_var=False).pvalue < 1 - CERTAINTY
        return f"clear of {rival} over seeds" if apart else f"within the spread of seeds of {rival}"
    if best.error is None or next_best.error is None or len(best.each) != len(next_best.each):
        return f"before {rival}, errors not known"
    apart = abs(best.value - next_best.value) > SIGMAS * hypot(best.error, next_best.error)
    return f"clear of {rival}" if apart else f"within error of {rival}"
