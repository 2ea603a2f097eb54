"""Runs of sweeps in MLflow: made by the first job, closed with the status of the jobs, with the chart of all."""

from __future__ import annotations

from pipeline.process import is_dead
from pipeline.record.headline import Headline
from pipeline.record.job import Job
from pipeline.tracking.runs import Runs
from pipeline.tracking.terms import Point, series

QUALITY = "quality"
"""Tag of a sweep: the metric by which its jobs are compared first."""


def sweep_run(runs: Runs, sweep: str, start: float = 0.0) -> str:
    """Returns the run that is the parent of a sweep's jobs. Whichever of them comes first creates it."""
    with runs.lock:
        if found := runs.latest(kind="sweep", sweep=sweep):
            return str(found.info.run_id)
        return runs.create("sweep", f"sweep {sweep}", {"sweep": sweep}, start=start)


def close_sweep(runs: Runs, sweep: str) -> None:
    """Sets the status of a sweep's run from its jobs so far: running, failed if any failed, finished."""
    with runs.lock:
        last = runs.latest(by="end_time", kind="job", sweep=sweep)
        parent = runs.latest(kind="sweep", sweep=sweep)
        if not last or not parent:
            return
        if runs.latest("RUNNING", kind="job", sweep=sweep):
            runs.reopen(parent.info.run_id)
            return
        failed = any(runs.latest(status, kind="job", sweep=sweep) for status in ("FAILED", "KILLED"))
        runs.close(parent.info.run_id, "FAILED" if failed else "FINISHED", last.info.end_time / 1000)


def close_dead(runs: Runs, **tags: str) -> None:
    """Marks runs as KILLED that a process of this machine left RUNNING when it was killed."""
    sweeps = set()
    for run in runs.search("RUNNING", **tags):
        if is_dead(run.data.tags.get("process", "")):
            runs.close(run.info.run_id, "KILLED")
            sweeps.add(run.data.tags.get("sweep", ""))
    for sweep in sweeps - {""}:
        close_sweep(runs, sweep)


def log_chart(runs: Runs, job: Job, found: Headline, when: float) -> None:
    """Logs a job's quality over sparsity to the sweep's run: a metric for each line of the chart, whose step is the
    sparsity in percent."""
    if found.sparsity is None or found.quality is None:
        return
    values = {found.quality.name: found.quality.value, "recovery": found.recovery}
    values["best_decode_speedup"] = found.speedup.value if found.speedup else None
    step, line = round(100 * found.sparsity), series(job)
    points = [Point(f"{name}/{line}", value, step, when) for name, value in values.items() if value is not None]
    runs.log(sweep_run(runs, job.sweep), tags={QUALITY: found.quality.name}, points=points)
