"""Rebuilds the view in MLflow from what is on disk: results from the store, jobs from their folders."""

from __future__ import annotations

from pathlib import Path

from pipeline.job import Job, ended_at, ended_jobs, read_summary, started_at
from pipeline.store import Entry, Store
from pipeline.tracking_view import View


def relog(view: View, runs: Path) -> dict[str, int]:
    """Makes the runs of jobs and results that MLflow does not know, and leaves the others alone.

    Returns how many runs of each kind it made.
    """
    view.close_dead()
    before = _counts(view)
    jobs = ended_jobs(runs)
    run_ids = {job.key: _run_of(view, job) for job in jobs}
    # First by the jobs that made them, so that a result stands under its maker.
    for status in ("done", "hit"):
        for job in jobs:
            for node, entry in _results(job, runs, status).items():
                view.show(entry, node, parent=run_ids[job.key])
    for entry in Store(runs / "store").entries():
        view.show(entry, node=entry.stage)
    for job in jobs:
        if not _is_closed(view, job):
            _close(view, job, runs, run_ids[job.key])
    after = _counts(view)
    return {kind: after[kind] - before[kind] for kind in after}


def _run_of(view: View, job: Job) -> str:
    """The job's run, complete or not, or a new one."""
    known = view.search(kind="job", job=job.key)
    return str(known[0].info.run_id) if known else view.create_job(job, started_at(job))


def _is_closed(view: View, job: Job) -> bool:
    return any(run.info.status in ("FINISHED", "FAILED") for run in view.search(kind="job", job=job.key))


def _close(view: View, job: Job, runs: Path, run_id: str) -> None:
    nodes = read_summary(job.folder)
    results = _results(job, runs, "done") | _results(job, runs, "hit")
    links = {node: view.made_by(entry.fingerprint) for node, entry in results.items()}
    ok = all(outcome["status"] not in ("failed", "not run") for outcome in nodes.values())
    view.close_job(run_id, job, nodes, links, ok, ended_at(job))


def _results(job: Job, runs: Path, status: str) -> dict[str, Entry]:
    """What the job's nodes of this status made or found, as far as it is still stored: sources in the user's cache."""
    stores = (Store(runs / "store"), Store(Path(job.config["cache"]["folder"]) / "store"))
    found = {}
    for node, outcome in read_summary(job.folder).items():
        if outcome["status"] == status:
            entries = (store.find(outcome["stage"], outcome["fingerprint"]) for store in stores)
            if entry := next(filter(None, entries), None):
                found[node] = entry
    return found


def _counts(view: View) -> dict[str, int]:
    return {kind: len(view.search(kind=kind)) for kind in ("sweep", "job", "stage")}
