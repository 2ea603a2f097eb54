"""Logs to MLflow what it lacks of the record on disk: jobs, sweeps and the results in the store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pipeline.plan import Stores
from pipeline.record.job import ended_at, ended_jobs, started_at
from pipeline.record.outcome import Outcome
from pipeline.record.status import Status
from pipeline.record.sweep import read_shared, sweeps
from pipeline.store.store import Store
from pipeline.tracking.record import Record
from pipeline.tracking.sweep_runs import close_dead
from pipeline.tracking.view import View
from stages.contracts import UserError


def relog(view: View, runs: Path) -> dict[str, int]:
    """Logs the records and returns how many runs of each kind it made. Raises UserError, and makes none, for a damaged
    result or record."""
    _refuse_damaged(Store(runs / "store"))
    close_dead(view.runs)
    before = _counts(view)
    found = list(records(runs))
    for record in found:  # first the makers, so that a result stands under its own
        made = {key: outcome for key, outcome in record.outcomes.items() if outcome.status == Status.DONE}
        view.sync(replace(record, outcomes=made, ended=0.0))
    for record in found:
        view.sync(record)
    return {kind: count - before[kind] for kind, count in _counts(view).items()}


def _refuse_damaged(store: Store) -> None:
    """Raises UserError for a damaged result: MLflow must show what was measured."""
    for entry in store.entries():
        if why := store.corruption(entry):
            place = f"{entry.stage}/{entry.path.name}"
            raise UserError(
                f"{place} is damaged: {why}; `python -m pipeline.store --runs {store.root.parent} verify --remove` "
                "deletes it",
                "--runs",
            )


def records(runs: Path) -> Iterator[Record]:
    """Yields the records of what ran before the jobs of sweeps, then those of jobs, the earliest first, then results
    that belong to neither."""
    jobs = sorted(ended_jobs(runs), key=started_at)
    first = {job.sweep: job for job in reversed(jobs)}
    for sweep in sweeps(runs):
        if sweep.id in first and (outcomes := read_shared(sweep.folder)):
            job, stores = first[sweep.id], Stores.below(runs, Path(sweep.cache))
            yield Record(outcomes, stores, sweep.id, job.about, started=started_at(job))
    for job in jobs:
        stores = Stores.below(runs, Path(job.config["cache"]["folder"]))
        yield Record.of_job(job, job.outcomes, stores, started_at(job), ended_at(job))
    left = {
        entry.fingerprint: Outcome(entry.stage, entry.stage, entry.fingerprint, Status.HIT)
        for entry in Store(runs / "store").entries()
    }
    yield Record(left, Stores.below(runs, runs), "", {})


def _counts(view: View) -> dict[str, int]:
    return {kind: len(view.runs.search(kind=kind)) for kind in ("sweep", "job", "stage")}
