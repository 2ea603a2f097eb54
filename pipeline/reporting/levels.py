"""What the plots and the summary compare: a kind of model at a sparsity, its seeds taken together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from pipeline.reporting.models import ModelRow
from pipeline.reporting.study import Study

ONE_SHOT = "one-shot"


@dataclass(frozen=True)
class Level:
    series: str
    sparsity: float
    value: float
    """Of one model, or the mean over its seeds."""
    error: float | None
    """Standard error of one model; sample standard deviation over seeds."""
    recovery: float | None
    """In percent; the mean over seeds."""
    rows: tuple[ModelRow, ...]
    """One for each seed."""
    each: tuple[float, ...]
    """Their values."""


def levels(study: Study, metric: str) -> list[Level]:
    """Of models in floating point that have the metric, by series, one-shot last, from the lowest sparsity on."""
    found: dict[tuple[bool, str, float], list[ModelRow]] = {}
    for row in study.models:
        if row.kind in ("evaluate", "one_shot_eval") and row.sparsity is not None and metric in row.qualities:
            key = row.kind == "one_shot_eval", study.series(row), round(row.sparsity, 3)
            found.setdefault(key, []).append(row)
    return [_level(series, sparsity, rows, metric) for (_, series, sparsity), rows in sorted(found.items(), key=_key)]


def _key(item: tuple[tuple[bool, str, float], list[ModelRow]]) -> tuple[bool, str, float]:
    return item[0]


def _level(series: str, sparsity: float, rows: Sequence[ModelRow], metric: str) -> Level:
    values = tuple(row.qualities[metric].value for row in rows)
    recoveries = [recovery for row in rows if (recovery := row.qualities[metric].recovery) is not None]
    return Level(
        series=series,
        sparsity=sparsity,
        value=mean(values),
        error=stdev(values) if len(values) > 1 else rows[0].qualities[metric].stderr,
        recovery=mean(recoveries) if len(recoveries) == len(rows) else None,
        rows=tuple(rows),
        each=values,
    )
