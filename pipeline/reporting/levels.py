"""What the plots and the summary compare: a kind of model at a sparsity, its seeds taken together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from operator import itemgetter
from statistics import mean, stdev

from pipeline.reporting.models import ModelRow
from pipeline.reporting.study import Study


@dataclass(frozen=True)
class Level:
    series: str
    place: float
    """On the study's axis: sparsity in percent, or the value of that option; NaN if that does not make the model."""
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
    """Of models in floating point that have the metric, by series, one-shot last, from the lowest place on."""
    found: dict[tuple[bool, str, float, float], list[ModelRow]] = {}
    for row in study.models:
        if row.kind in ("evaluate", "one_shot_eval") and row.sparsity is not None and metric in row.qualities:
            sparsity = round(row.sparsity, 3)
            option = row.dials.get(study.axis)
            place = 100 * sparsity if study.axis == "sparsity" else float(option) if option else nan
            found.setdefault((row.kind == "one_shot_eval", study.series(row), place, sparsity), []).append(row)
    return [_level(*key[1:], rows, metric) for key, rows in sorted(found.items(), key=itemgetter(0))]


def _level(series: str, place: float, sparsity: float, rows: Sequence[ModelRow], metric: str) -> Level:
    values = tuple(row.qualities[metric].value for row in rows)
    recoveries = [recovery for row in rows if (recovery := row.qualities[metric].recovery) is not None]
    return Level(
        series=series,
        place=place,
        sparsity=sparsity,
        value=mean(values),
        error=stdev(values) if len(values) > 1 else rows[0].qualities[metric].stderr,
        recovery=mean(recoveries) if len(recoveries) == len(rows) else None,
        rows=tuple(rows),
        each=values,
    )
