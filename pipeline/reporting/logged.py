"""Logs the files of a report to MLflow, on the run of the sweep or job that they report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.record.folders import Folder, runs_of
from pipeline.reporting.study import Study
from pipeline.schema import Tracking
from pipeline.tracking.server import connect, explain, failures
from pipeline.tracking.sweep_runs import close_dead, close_sweep
from pipeline.tracking.view import View
from stages.contracts import UserError

PLACE = "report"
"""Folder of the report among the run's artifacts."""


def log(study: Study, files: Sequence[Path], runs: Path) -> list[str]:
    """Logs the files to the run of each folder. Returns a line for each: where they went, or why not."""
    return [_log(folder, files, runs_of(folder.path / "any", runs)) for folder in study.folders]


def _log(folder: Folder, files: Sequence[Path], runs: Path) -> str:
    config = next((Tracking(**job.config["tracking"]) for job in folder.jobs if "tracking" in job.config), None)
    if config is None or not config.enabled:
        return f"not in MLflow: {folder.path.name} ran without tracking"
    if not config.uri and not (runs / "mlflow.db").exists():
        return f"not in MLflow: there is no {runs / 'mlflow.db'}"
    sweep = next((job.sweep for job in folder.jobs if job.sweep), "")
    try:
        view = View(connect(config.uri, config.experiment, runs), config.artifacts)
        close_dead(view.runs)
        run = (
            view.runs.latest(kind="sweep", sweep=sweep)
            if sweep
            else view.runs.latest(kind="job", job=folder.jobs[0].key)
        )
        if run is None:
            return f"not in MLflow, which does not know {folder.path.name}: python -m pipeline.tracking relog"
        for file in files:
            view.runs.client.log_artifact(run.info.run_id, str(file), PLACE)
        if sweep:
            close_sweep(view.runs, sweep)
        run = view.runs.client.get_run(run.info.run_id)
    except UserError as error:
        return f"not in MLflow: {error}"
    except failures() as error:
        return f"not in MLflow: {explain(error)}"
    return f"in MLflow: run {run.info.run_name}, {run.info.status.lower()}"
