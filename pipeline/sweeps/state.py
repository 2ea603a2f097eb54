"""How far a sweep is, read from what its jobs leave on disk; it may be running, in this process or another."""

from __future__ import annotations

import functools
import json
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pipeline import progress
from pipeline.headline import headline, main_metric
from pipeline.job import RECORD, end_of, read_summary
from pipeline.plan import Stores
from pipeline.process import is_dead
from pipeline.progress import Progress
from pipeline.store.record import META
from pipeline.store.store import Store
from pipeline.sweeps.sweep import Sweep, SweepJob, read_shared, shared, users
from stages.index import STAGES

NodeStatus = Literal["stored", "running", "stopped", "failed", "waiting"]
"""stopped: its process was killed; what it had done so far is kept where the stage can go on from it."""
JobStatus = Literal["done", "failed", "running", "killed", "waiting", "missing"]
"""waiting: its sweep runs and will come to it. missing: its sweep ended before."""
RETRIED: tuple[JobStatus, ...] = ("failed", "killed", "missing")


@dataclass(frozen=True)
class Node:
    name: str
    stage: str
    fingerprint: str
    status: NodeStatus
    users: int
    """Jobs that have it."""
    seconds: float | None = None
    """It took; of a stored one."""
    progress: Progress | None = None


@dataclass(frozen=True)
class JobState:
    job: SweepJob
    status: JobStatus
    reason: str
    """Of a failure, in one line."""
    metric: str
    """Its main one; empty if there is none yet."""
    headline: dict[str, float]
    executed: int
    """Nodes that this job itself ran."""
    stored: int
    """Nodes whose results are there by now, by whomever."""


@dataclass(frozen=True)
class SweepState:
    sweep: Sweep
    jobs: list[JobState]
    nodes: list[Node]
    """Each result once."""
    shared_executed: int
    """Nodes that ran before the jobs."""

    @property
    def alive(self) -> bool:
        """Whether something of it runs, as far as can be known."""
        return self.sweep.alive or self.counts["running"] > 0

    @property
    def status(self) -> str:
        if self.alive:
            return "running"
        counts = self.counts
        if counts["done"] == len(self.jobs) and self.jobs:
            return "done"
        return "failed" if counts["failed"] and not counts["killed"] + counts["missing"] else "unfinished"

    @property
    def counts(self) -> Counter[str]:
        return Counter(job.status for job in self.jobs)

    @property
    def executed(self) -> int:
        return self.shared_executed + sum(job.executed for job in self.jobs)

    def seconds_left(self) -> tuple[float, int]:
        """Seconds until all jobs are done, and how many nodes that leaves out because no stage of their kind has been
        measured in this sweep. A stage is taken to last as long as those of its kind did here."""
        took: dict[str, list[float]] = {}
        for node in self.nodes:
            if node.seconds is not None:
                took.setdefault(node.stage, []).append(node.seconds)
        seconds, unknown = 0.0, 0
        for node in self.nodes:
            if node.status in ("stored", "failed"):
                continue
            usual = statistics.median(took[node.stage]) if node.stage in took else None
            left = usual
            if node.status == "running" and node.progress:
                elapsed = time.time() - node.progress.started
                left = node.progress.seconds_left
                left = max(usual - elapsed, left or 0.0) if usual else left
            seconds += left or 0.0
            unknown += left is None
        return seconds / max(1, self.sweep.parallel), unknown


def read(sweep: Sweep) -> SweepState:
    stores = Stores.below(sweep.folder.parent.parent, Path(sweep.cache))
    common = read_shared(sweep.folder)
    nodes: dict[str, Node] = {}
    having = users(sweep.jobs)
    summaries = {job.num: read_summary(sweep.folder / str(job.num)) for job in sweep.jobs}
    failed = {
        node["fingerprint"] for nodes_ in (common, *summaries.values()) for node in nodes_.values()
        if node["status"] == "failed"
    }  # fmt: skip
    for job in sweep.jobs:
        for name, node in job.nodes.items():
            key = node["fingerprint"]
            if key not in nodes:
                store = stores.for_stage(STAGES[node["stage"]])
                nodes[key] = _node(store, name, node["stage"], key, having[key], key in failed)
    return SweepState(
        sweep=sweep,
        jobs=[_job_state(sweep, job, summaries[job.num], nodes) for job in sweep.jobs],
        nodes=list(nodes.values()),
        shared_executed=sum(node["status"] == "done" for node in common.values()),
    )


def shared_nodes(state: SweepState) -> list[Node]:
    common = shared(state.sweep.jobs)
    return [node for node in state.nodes if node.fingerprint in common]


def _node(store: Store, name: str, stage: str, fingerprint: str, users: int, failed: bool) -> Node:
    if store.is_stored(stage, fingerprint):
        return Node(name, stage, fingerprint, "stored", users, _seconds(store.folder(stage, fingerprint) / META))
    found = progress.read(store.progress(stage, fingerprint))
    if found:
        return Node(name, stage, fingerprint, "running" if found.alive else "stopped", users, None, found)
    return Node(name, stage, fingerprint, "failed" if failed else "waiting", users)


@functools.cache
def _seconds(record: Path) -> float | None:
    try:
        return float(json.loads(record.read_bytes())["seconds"])
    except (OSError, ValueError, KeyError):
        return None


def _job_state(
    sweep: Sweep, job: SweepJob, summary: Mapping[str, Mapping[str, Any]], nodes: Mapping[str, Node]
) -> JobState:
    status, reason = _status(sweep, job, summary)
    return JobState(
        job=job,
        status=status,
        reason=reason,
        metric=main_metric(summary),
        headline=headline(summary),
        executed=sum(node["status"] == "done" for node in summary.values()),
        stored=sum(nodes[node["fingerprint"]].status == "stored" for node in job.nodes.values()),
    )


def _status(sweep: Sweep, job: SweepJob, summary: Mapping[str, Mapping[str, Any]]) -> tuple[JobStatus, str]:
    folder = sweep.folder / str(job.num)
    if summary:
        status, reason = end_of(summary)
        return ("killed" if status == "interrupted" else status), reason
    if job.error:
        return "failed", job.error
    try:
        record = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError):
        return ("waiting", "") if sweep.alive else ("missing", "")
    return ("killed", "") if is_dead(record.get("process", "")) else ("running", "")


def started(sweep: Sweep) -> datetime:
    return datetime.fromisoformat(sweep.started).astimezone()
