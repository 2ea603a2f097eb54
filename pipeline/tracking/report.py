"""The files of a report in MLflow: on the run of the sweep, or of the single job, that they report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.schema import Tracking
from pipeline.tracking.server import connect, explain, failures
from pipeline.tracking.view import View
from stages.contracts import UserError

PLACE = "report"
"""Folder of the report among the run's artifacts."""


def log_report(files: Sequence[Path], folder: Path, sweep: str, config: Tracking | None, runs: Path) -> str:
    """`folder`: of the sweep or the job; `config`: with which it ran. Returns where the files are now, or why not."""
    if config is None or not config.enabled:
        return f"not in MLflow: {folder.name} ran without tracking"
    if not config.uri and not (runs / "mlflow.db").exists():
        return f"not in MLflow: there is no {runs / 'mlflow.db'}"
    try:
        view = View(connect(config.uri, config.experiment, runs), config.artifacts)
        view.close_dead()
        run = _run_of(view, folder, sweep)
        if run is None:
            return f"not in MLflow, which does not know {folder.name}: python -m pipeline.tracking relog"
        for file in files:
            view.runs.client.log_artifact(run.info.run_id, str(file), PLACE)
        if sweep:
            view.close_sweep(sweep)
        run = view.runs.client.get_run(run.info.run_id)
    except UserError as error:
        return f"not in MLflow: {error}"
    except failures() as error:
        return f"not in MLflow: {explain(error)}"
    return f"in MLflow: run {run.info.run_name}, {run.info.status.lower()}"


def _run_of(view: View, folder: Path, sweep: str) -> Any | None:
    if sweep:
        return view.runs.latest(kind="sweep", sweep=sweep)
    place = folder.resolve()
    return view.runs.latest(kind="job", job=f"{place.parent.name}/{place.name}")
