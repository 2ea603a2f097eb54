"""Writes report.html: one self-contained file for the screen, light or dark, and for print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline import job_log
from pipeline.reporting import choices, dag, findings, quality_figures, speed_figures, tables, training_figures
from pipeline.reporting.cells import EMPTY, name_of
from pipeline.reporting.study import Study

SHORT = 8
"""Digits of a fingerprint on the page."""


def html(study: Study) -> str:
    environment = Environment(
        loader=PackageLoader("pipeline.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    found = {table.name: table for table in tables.everything(study)}
    first = study.folders[0]
    return environment.get_template("page.html.j2").render(
        study=study,
        tables=found,
        plots=_plots(study),
        findings=findings.findings(study),
        common=study.common,
        settings=choices.common_settings(study.jobs),
        states=Counter(state.partition(":")[0].partition(" by ")[0] for state in study.states),
        metric=name_of(study.metric) if study.metric else "",
        empty=EMPTY,
        logs=any(row["job"].link for row in found["jobs"].rows),
        shared_log=job_log.NAME if first.jobs[0].folder != first.path and (first.path / job_log.NAME).exists() else "",
        short=lambda prints: ", ".join(fingerprint[:SHORT] for fingerprint in prints),
    )


def _plots(study: Study) -> Mapping[str, Any]:
    others = study.metrics[1:]
    drawn = {
        "quality": quality_figures.quality(study, study.metric) if study.metric else None,
        "others": [svg for name in others if (svg := quality_figures.quality(study, name))],
        "recovery": quality_figures.recovery_over_sparsity(study),
        "pareto": speed_figures.pareto(study),
        "beside": speed_figures.beside_published(study),
        "training": training_figures.training(study),
        "layers": training_figures.layers(study),
        "times": training_figures.times(study),
        "dag": dag.draw(study.groups, len(study.jobs)) if study.groups else None,
    }
    return {name: [Markup(svg) for svg in found] if isinstance(found, list) else Markup(found) if found else None
            for name, found in drawn.items()}  # fmt: skip
