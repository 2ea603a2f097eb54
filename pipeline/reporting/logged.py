"""The report in MLflow: files of the sweep's parent run, or of the single job's run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.record.folders import Folder, runs_of
from pipeline.reporting.study import Study
from pipeline.schema import Tracking
from pipeline.tracking.report import log_report


def log(study: Study, files: Sequence[Path], runs: Path) -> list[str]:
    """Logs the files to the run of each folder. Returns a line for each: where to, or why not."""
    return [_log(folder, files, runs_of(folder.path / "any", runs)) for folder in study.folders]


def _log(folder: Folder, files: Sequence[Path], runs: Path) -> str:
    config = next((Tracking(**job.config["tracking"]) for job in folder.jobs if "tracking" in job.config), None)
    sweep = next((job.sweep for job in folder.jobs if job.sweep), "")
    return log_report(files, folder.path, sweep, config, runs)
