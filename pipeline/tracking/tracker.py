"""Logs to MLflow while jobs run: the record after each result, and the curves of a stage as they come.

The store is the truth, MLflow a view of it. If MLflow fails on the way, work continues without it, and `python -m
pipeline.tracking relog` logs later what is missing.
"""

from __future__ import annotations

import functools
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pipeline.credentials import public
from pipeline.environment import environment
from pipeline.plan import Stores
from pipeline.process import this_process
from pipeline.record.job import SUMMARY, Job, ended_at
from pipeline.record.outcome import Outcomes
from pipeline.schema import Tracking
from pipeline.tracking.record import Record
from pipeline.tracking.server import connect, explain, failures
from pipeline.tracking.stage_runs import Live
from pipeline.tracking.terms import Point
from pipeline.tracking.view import View
from stages.contracts import UserError

FLUSH_SECONDS = 2.0
RELOG = "python -m pipeline.tracking relog"

T = TypeVar("T")


class TrackingLostError(UserError):
    """MLflow failed while a job ran. Its results are complete in the store."""


def open_tracker(
    config: Tracking, job: Job, stores: Stores, threads: int, say: Callable[[str], None] = print
) -> Tracker:
    """Opens the tracker of a job that starts, and writes its record. `say` gets one line if MLflow fails later. Raises
    UserError if it cannot be used now."""
    job = replace(job, environment=environment(threads), process=this_process())
    job.write()
    return _open(config, Record.of_job(job, {}, stores), say)


def open_sweep_tracker(
    config: Tracking, sweep: str, stores: Stores, about: Mapping[str, str], say: Callable[[str], None]
) -> Tracker:
    """Opens the tracker of stages that run before the jobs that share them; their runs are children of the sweep's.
    Raises UserError."""
    return _open(config, Record({}, stores, sweep, about), say)


def _open(config: Tracking, record: Record, say: Callable[[str], None]) -> Tracker:
    if not config.enabled:
        return Tracker()
    view = _view(config, record.stores.runs.root.parent.resolve())
    try:
        view.start(record)
        stop = view.watch_machine(record.job) if config.system_metrics and record.job else lambda: None
    except failures() as error:
        raise UserError(f"MLflow failed: {explain(error)}", "tracking.uri") from None
    return Tracker(view, record, say, stop)


@functools.cache
def _view(config: Tracking, runs: Path) -> View:
    """Returns the view shared by all jobs of this process, which caches what it has looked up."""
    return View(connect(config.uri, config.experiment, runs), config.artifacts)


class Tracker:
    """Tracker of a running job. Without a view (tracking.enabled=false) results stay in the store."""

    def __init__(
        self, view: View | None = None, record: Record | None = None, say: Callable[[str], None] = print,
        stop: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """`stop` ends the recording of the machine's load."""
        self._view = view
        self._record = record
        self._say = say
        self._stop = stop
        self._lost = ""

    def start_stage(self, node: str, stage: str, fingerprint: str, config: Mapping[str, Any]) -> Stream:
        """Begins the run of a node that is about to be executed. The caller holds the store's lock of the
        fingerprint."""
        live = self.attempt(lambda view, record: view.begin(record, node, stage, fingerprint, config))
        return Stream(self, live)

    def sync(self, outcomes: Outcomes) -> None:
        """Logs everything up to the newest result."""
        self.attempt(lambda view, record: view.sync(replace(record, outcomes=outcomes)))

    def finish(self, outcomes: Outcomes) -> None:
        """Logs the end of the job, whose folder holds the files to show.

        Raises TrackingLostError if MLflow failed, now or earlier.
        """
        self._stop()
        self.attempt(lambda view, record: view.sync(replace(record, outcomes=outcomes, ended=_ended(record.job))))
        if self._lost:
            raise TrackingLostError(
                f"MLflow failed ({self._lost}); results are stored, show them with `{RELOG}`", "tracking"
            )

    def attempt(self, action: Callable[[View, Record], T]) -> T | None:
        """Calls the function, unless MLflow has failed before: an unreachable server costs its timeout only once."""
        if self._view is None or self._record is None or self._lost:
            return None
        try:
            return action(self._view, self._record)
        except failures() as error:
            self._lost = explain(error)
            self._say(f"MLflow failed, the job goes on without it: {self._lost}")
            return None


class Stream:
    """The curves of a running stage."""

    def __init__(self, tracker: Tracker, live: Live | None) -> None:
        self._tracker = tracker
        self._live = live
        self._waiting: list[Point] = []
        self._flushed = 0.0

    def metrics(self, values: Mapping[str, float], step: int, when: float) -> None:
        """Logs a point; `when` in seconds since the epoch."""
        self._waiting += [Point(name, float(value), step, when) for name, value in values.items()]
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self._flush()

    def fail(self, error: BaseException) -> None:
        """Records that the stage ended without a result."""
        self._flush()
        report = public("".join(traceback.format_exception(error)))
        if live := self._live:
            self._tracker.attempt(lambda view, record: view.stages.fail(live, error, report))

    def _flush(self) -> None:
        points, self._waiting = self._waiting, []
        if live := self._live:
            self._tracker.attempt(lambda view, record: view.runs.log(live.run_id, points=points))
            live.shown.update((point.name, point.step) for point in points)
        self._flushed = time.monotonic()


def _ended(job: Job | None) -> float:
    """Returns when the summary of a job was written, so that logging it again changes nothing."""
    return ended_at(job) if job and (job.folder / SUMMARY).exists() else time.time()
