"""Reads the state of a sweep, running or ended, from what its jobs leave on disk."""

from __future__ import annotations

import functools
import statistics
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from pipeline import progress
from pipeline.plan import Stores
from pipeline.progress import Progress
from pipeline.record.files import read_json
from pipeline.record.folders import JobRecord, read_job
from pipeline.record.headline import Headline, headline
from pipeline.record.outcome import Outcome
from pipeline.record.status import Status
from pipeline.record.sweep import Sweep, SweepJob, SweepNode, read_shared, users
from pipeline.store.record import META
from pipeline.store.store import Store
from stages.index import described

RETRIED = (Status.FAILED, Status.INTERRUPTED, Status.NOT_RUN)


@dataclass
class SharedOutcome(Outcome):
    """The state of a sweep's result, wherever it was made: HIT (stored by now), RUNNING, INTERRUPTED, FAILED or
    TO_RUN."""

    users: int = 1
    """Number of jobs that have it."""
    progress: Progress | None = None
    """Progress of a node that is running, or was when it was interrupted."""


@dataclass(frozen=True)
class JobState:
    job: SweepJob
    status: Status
    """TO_RUN while its sweep runs and will reach it, NOT_RUN if the sweep ended before."""
    reason: str
    """Why it failed, in one line."""
    headline: Headline
    executed: int
    """Nodes that this job itself ran."""
    stored: int
    """Nodes whose results are stored by now, whoever made them."""


@dataclass(frozen=True)
class SweepState:
    sweep: Sweep
    jobs: list[JobState]
    nodes: list[SharedOutcome]
    """Each result once, by fingerprint."""
    shared_executed: int
    """Nodes that ran before the jobs."""

    @property
    def alive(self) -> bool:
        """Returns whether any part of it runs, as far as can be known."""
        return self.sweep.alive or self.counts[Status.RUNNING] > 0

    @property
    def status(self) -> Status:
        if self.alive:
            return Status.RUNNING
        counts = self.counts
        if counts[Status.DONE] == len(self.jobs) and self.jobs:
            return Status.DONE
        left = counts[Status.INTERRUPTED] + counts[Status.NOT_RUN]
        return Status.FAILED if counts[Status.FAILED] and not left else Status.INTERRUPTED

    @property
    def counts(self) -> Counter[Status]:
        return Counter(job.status for job in self.jobs)

    @property
    def executed(self) -> int:
        return self.shared_executed + sum(job.executed for job in self.jobs)

    def seconds_left(self) -> tuple[float, int]:
        """Returns the seconds until all jobs are done, and the number of nodes left out because no stage of their kind
        was measured in this sweep. A stage is assumed to take as long as those of its kind did here."""
        took: dict[str, list[float]] = {}
        for node in self.nodes:
            if node.seconds:
                took.setdefault(node.stage, []).append(node.seconds)
        seconds, unknown = 0.0, 0
        for node in self.nodes:
            if node.status in (Status.HIT, Status.FAILED):
                continue
            usual = statistics.median(took[node.stage]) if node.stage in took else None
            left = usual
            if node.status == Status.RUNNING and node.progress:
                elapsed = time.time() - node.progress.started
                left = node.progress.seconds_left
                left = max(usual - elapsed, left or 0.0) if usual else left
            seconds += left or 0.0
            unknown += left is None
        return seconds / max(1, self.sweep.parallel), unknown


def read(sweep: Sweep) -> SweepState:
    stores = Stores.below(sweep.folder.parent.parent, Path(sweep.cache))
    common = read_shared(sweep.folder)
    having = users(sweep.jobs)
    jobs = [read_job(sweep.folder / str(job.num), sweep) for job in sweep.jobs]
    every = [*common.values(), *(node for job in jobs for node in job.nodes.values())]
    failed = {outcome.fingerprint for outcome in every if outcome.status == Status.FAILED}
    nodes: dict[str, SharedOutcome] = {}
    for job in sweep.jobs:
        for name, node in job.nodes.items():
            if node.fingerprint not in nodes:
                store = stores.for_stage(described(node.stage))
                nodes[node.fingerprint] = _node(store, name, node, having[node.fingerprint], failed)
    return SweepState(
        sweep=sweep,
        jobs=[_job_state(*pair, nodes) for pair in zip(sweep.jobs, jobs, strict=True)],
        nodes=list(nodes.values()),
        shared_executed=sum(outcome.status == Status.DONE for outcome in common.values()),
    )


def _node(store: Store, name: str, node: SweepNode, users: int, failed: Collection[str]) -> SharedOutcome:
    stage, fingerprint = node.stage, node.fingerprint
    found = SharedOutcome(name, stage, fingerprint, Status.TO_RUN, users=users)
    if store.is_stored(stage, fingerprint):
        return replace(found, status=Status.HIT, seconds=_seconds(store.folder(stage, fingerprint) / META))
    if at_work := progress.read(store.progress(stage, fingerprint)):
        return replace(found, status=Status.RUNNING if at_work.alive else Status.INTERRUPTED, progress=at_work)
    return replace(found, status=Status.FAILED) if fingerprint in failed else found


@functools.cache
def _seconds(record: Path) -> float:
    """Returns the time that making a result took; 0 if its record cannot be read."""
    return float(read_json(record).get("seconds", 0.0))


def _job_state(job: SweepJob, record: JobRecord, nodes: Mapping[str, SharedOutcome]) -> JobState:
    return JobState(
        job=job,
        status=record.status,
        reason=record.reason,
        headline=headline(record.nodes),
        executed=sum(outcome.status == Status.DONE for outcome in record.nodes.values()),
        stored=sum(nodes[node.fingerprint].status == Status.HIT for node in job.nodes.values()),
    )


def started(sweep: Sweep) -> datetime:
    return datetime.fromisoformat(sweep.started).astimezone()
