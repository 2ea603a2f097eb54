"""Summarizes a report in a few lines: at each sparsity the best loss, whether it is better than the next, and its
speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.reporting.analysis import Level, levels
from pipeline.reporting.cells import named_value, number, with_error
from pipeline.reporting.pairs import interval
from pipeline.reporting.study import Study
from pipeline.reporting.verdicts import SAME

CERTAINTY = 0.95
"""Confidence level of Welch's test over seeds."""


@dataclass(frozen=True)
class Finding:
    """The best fine-tuned model at one sparsity, by the main metric."""

    level: str
    best: str
    value: str
    recovery: str
    margin: str
    """Difference to the next best."""
    speed: str


def findings(study: Study) -> list[Finding]:
    tuned = [level for level in levels(study.table, study.naming, study.metric) if not level.one_shot]
    places: list[list[Level]] = []
    for level in sorted(tuned, key=lambda level: level.sparsity):
        if places and level.sparsity - places[-1][0].sparsity < SAME:
            places[-1].append(level)
        else:
            places.append([level])
    return [_finding(study, place) for place in places]


def _finding(study: Study, rivals: Sequence[Level]) -> Finding:
    ranked = sorted(rivals, key=lambda level: level.value, reverse=study.higher_is_better(study.metric))
    best = ranked[0]
    own = [row for row in study.models if row["evaluation"] in best.evaluations]
    int8 = [row for row in study.models if row["kind"] == "evaluate_q" and set(best.jobs) & set(row["jobs"])]
    speeds = ([study.speed(row) for row in rows] for rows in (own, int8))
    fastest = (max(filter(None, found), key=lambda speed: speed.ratio, default=None) for found in speeds)
    seeds = f", mean of {len(best.each)} seeds" if len(best.each) > 1 else ""
    return Finding(
        level=f"{100 * best.sparsity:.3g} %",
        best=_called(study, best),
        value=named_value(study.metric, best.value, best.error),
        recovery=f"{best.recovery:.1f} % of dense{seeds}" if best.recovery is not None else seeds.lstrip(", "),
        margin=_margin(study, best, ranked[1:]),
        speed=", ".join(f"{speed.ratio:.1f}× ({speed.backend})" for speed in fastest if speed),
    )


def _called(study: Study, level: Level) -> str:
    axis = study.naming.axis
    return level.series if axis == "sparsity" else f"{level.series} {axis}={level.place:g}"


def _margin(study: Study, best: Level, others: Sequence[Level]) -> str:
    """Compares with the best level of another series, at its own best position; or of the same series, if there is no
    other."""
    next_best = next((level for level in others if level.series != best.series), next(iter(others), None))
    if next_best is None:
        return ""
    rival = f"{_called(study, next_best)} ({with_error(study.metric, next_best.value, next_best.error)})"
    paired = interval(study.results, next_best, best, study.metric)
    if paired and paired.same_items:
        low, high = (number(study.metric, end) for end in sorted((abs(paired.low), abs(paired.high))))
        if paired.low * paired.high > 0:
            return f"better than {rival} by {low} to {high} (95 % interval, same items)"
        return f"no significant difference to {rival} on the same items"
    if len(best.each) > 1 and len(next_best.each) > 1:
        from scipy.stats import ttest_ind

        apart = ttest_ind(best.each, next_best.each, equal_var=False).pvalue < 1 - CERTAINTY
        return f"better than {rival} over seeds" if apart else f"no significant difference to {rival} over seeds"
    if paired is None:
        return f"ahead of {rival}; errors are not known"
    return f"better than {rival}" if paired.low * paired.high > 0 else f"within error of {rival}"
