"""Rebuilds the view in MLflow from what is on disk: results from the store, jobs from their folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.job import Job, ended_at, ended_jobs, read_summary, started_at, went_well
from pipeline.plan import Stores
from pipeline.store.store import Entry, Store
from pipeline.sweeps.sweep import Sweep, read_shared, sweeps
from pipeline.tracking.view import View, card_of
from stages.contracts import UserError


def relog(view: View, runs: Path) -> dict[str, int]:
    """Makes the runs of jobs and results that MLflow does not know, and leaves the others alone.

    Returns how many runs of each kind it made. Raises UserError, and makes none, for a damaged result or record.
    """
    _refuse_damaged(Store(runs / "store"))
    view.close_dead()
    before = _counts(view)
    jobs = ended_jobs(runs)
    run_ids = {job.key: _run_of(view, job) for job in sorted(jobs, key=started_at)}
    # First by those that made them, so that a result stands under its maker.
    for sweep in sweeps(runs):
        _show_shared(view, sweep, jobs, runs)
    for status in ("done", "hit"):
        for job in jobs:
            for node, entry in _results(job, runs, status).items():
                view.show(entry, node, run_ids[job.key], job.about)
    for entry in Store(runs / "store").entries():
        view.show(entry, entry.stage, "", {})
    for job in jobs:
        if not _is_closed(view, job):
            _close(view, job, runs, run_ids[job.key])
    after = _counts(view)
    return {kind: after[kind] - before[kind] for kind in after}


def _refuse_damaged(store: Store) -> None:
    """What MLflow shows of a result must be what was measured."""
    for entry in store.entries():
        if why := store.corruption(entry):
            place = f"{entry.stage}/{entry.path.name}"
            raise UserError(
                f"{place} is damaged: {why}; `python -m pipeline.store --runs {store.root.parent} verify --remove` "
                "deletes it",
                "--runs",
            )


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
    cards = {node: card for node, entry in results.items() if (card := card_of(entry))}
    view.close_job(run_id, job, nodes, links, cards, went_well(nodes), ended_at(job))


def _show_shared(view: View, sweep: Sweep, jobs: list[Job], runs: Path) -> None:
    """What ran before the jobs of a sweep stands under the sweep."""
    first = next((job for job in jobs if job.sweep == sweep.id), None)
    made = {key: node for key, node in read_shared(sweep.folder).items() if node["status"] == "done"}
    if first and made:
        for key, entry in _stored(made, first, runs).items():
            view.show(entry, made[key]["node"], view.sweep(sweep.id), first.about)


def _results(job: Job, runs: Path, status: str) -> dict[str, Entry]:
    """What the job's nodes of this status made or found, as far as it is still stored."""
    nodes = {node: outcome for node, outcome in read_summary(job.folder).items() if outcome["status"] == status}
    return _stored(nodes, job, runs)


def _stored(nodes: Mapping[str, Mapping[str, Any]], job: Job, runs: Path) -> dict[str, Entry]:
    """Sources are in the user's cache."""
    stores = Stores.below(runs, Path(job.config["cache"]["folder"]))
    found = {}
    for node, outcome in nodes.items():
        entries = (store.find(outcome["stage"], outcome["fingerprint"]) for store in (stores.runs, stores.cache))
        if entry := next(filter(None, entries), None):
            found[node] = entry
    return found


def _counts(view: View) -> dict[str, int]:
    return {kind: len(view.search(kind=kind)) for kind in ("sweep", "job", "stage")}
