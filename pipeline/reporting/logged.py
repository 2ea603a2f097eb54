"""The report in MLflow: files of the sweep's parent run, or of the single job's run, which is closed then."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.reporting.folders import Folder, runs_of
from pipeline.reporting.study import Study
from stages.contracts import UserError

PLACE = "report"
"""Folder of the report among the run's artifacts."""


def log(study: Study, files: Sequence[Path], runs: Path) -> list[str]:
    """Logs the files to the run of each folder. Returns a line for each: where to, or why not."""
    return [_log(folder, files, runs_of(folder.path / "any", runs)) for folder in study.folders]


def _log(folder: Folder, files: Sequence[Path], runs: Path) -> str:
    tracking = next((job.config["tracking"] for job in folder.jobs if "tracking" in job.config), None)
    if tracking is None or not tracking["enabled"]:
        return f"not in MLflow: {folder.path.name} ran without tracking"
    if not tracking["uri"] and not (runs / "mlflow.db").exists():
        return f"not in MLflow: there is no {runs / 'mlflow.db'}"
    from pipeline.tracking.server import connect, explain, failures
    from pipeline.tracking.view import View

    try:
        view = View(connect(tracking["uri"], tracking["experiment"], runs), tracking["artifacts"])
        view.close_dead()
        run = _run_of(view, folder)
        if run is None:
            return f"not in MLflow, which does not know {folder.path.name}: python -m pipeline.tracking relog"
        for file in files:
            view.connection.client.log_artifact(run.info.run_id, str(file), PLACE)
        if folder.jobs[0].sweep:
            view.settle(folder.jobs[0].sweep)
    except UserError as error:
        return f"not in MLflow: {error}"
    except failures() as error:
        return f"not in MLflow: {explain(error)}"
    status = view.connection.client.get_run(run.info.run_id).info.status
    return f"in MLflow: run {run.info.run_name}, {status.lower()}"


def _run_of(view: Any, folder: Folder) -> Any:
    if sweep := next((job.sweep for job in folder.jobs if job.sweep), ""):
        found = view.search(kind="sweep", sweep=sweep)
    else:
        place = folder.path.resolve()
        found = view.search(kind="job", job=f"{place.parent.name}/{place.name}")
    return found[0] if found else None
