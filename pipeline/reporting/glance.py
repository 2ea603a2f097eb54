"""The answer in a few lines: at each sparsity the best loss, whether it is one, and what it gains in speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.reporting.cells import name_of, number, with_error
from pipeline.reporting.models import ModelRow
from pipeline.reporting.study import Study
from pipeline.reporting.verdicts import differ

LEVEL = 0.005
"""Sparsities this near are one level."""


@dataclass(frozen=True)
class Finding:
    """At one sparsity, the best fine-tuned model by the main metric."""

    level: str
    best: str
    value: str
    recovery: str
    margin: str
    """Over the next best."""
    speed: str


def findings(study: Study) -> list[Finding]:
    levels: list[list[ModelRow]] = []
    candidates = [row for row in study.models if row.kind == "evaluate" and study.metric in row.qualities]
    for row in sorted(candidates, key=lambda row: row.sparsity or 0):
        if levels and abs((levels[-1][0].sparsity or 0) - (row.sparsity or 0)) < LEVEL:
            levels[-1].append(row)
        else:
            levels.append([row])
    return [_finding(study, rows) for rows in levels]


def _finding(study: Study, rows: Sequence[ModelRow]) -> Finding:
    metric = study.metric
    higher = rows[0].qualities[metric].higher_is_better
    ranked = sorted(rows, key=lambda row: row.qualities[metric].value, reverse=higher)
    best = ranked[0].qualities[metric]
    int8 = next((row for row in study.models if row.kind == "evaluate_q" and set(row.jobs) & set(ranked[0].jobs)), None)
    speeds = [f"{row.speed.ratio:.1f}× ({row.speed.backend})" for row in (ranked[0], int8) if row and row.speed]
    return Finding(
        level=f"{100 * (rows[0].sparsity or 0):.3g} %",
        best=study.series(ranked[0]),
        value=f"{name_of(metric)} {with_error(metric, best.value, best.stderr)}",
        recovery=f"{best.recovery:.1f} % of dense" if best.recovery is not None else "",
        margin=_margin(study, ranked),
        speed=", ".join(speeds),
    )


def _margin(study: Study, ranked: Sequence[ModelRow]) -> str:
    """Over the best of another series: seeds of one model are no rivals."""
    metric = study.metric
    rival = next((row for row in ranked if study.series(row) != study.series(ranked[0])), None)
    if rival is None:
        return ""
    told = f"{study.series(rival)} ({number(metric, rival.qualities[metric].value)})"
    apart = differ(ranked[0].qualities[metric], rival.qualities[metric])
    return {
        True: f"clear of {told}",
        False: f"within error of {told}",
        None: f"before {told}, errors not known",
    }[apart]
