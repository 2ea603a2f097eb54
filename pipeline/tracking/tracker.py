"""MLflow while jobs run: a run for the sweep, one for the job under it, one for each stage the job executes.

The store is the truth, MLflow a view of it. If MLflow fails on the way, work goes on without it, and
`python -m pipeline.tracking relog` brings in later what is missing.
"""

from __future__ import annotations

import functools
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pipeline.credentials import public
from pipeline.environment import environment
from pipeline.job import Job
from pipeline.process import this_process
from pipeline.schema import Tracking
from pipeline.store.store import Entry
from pipeline.tracking.server import connect, explain, failures
from pipeline.tracking.values import Point
from pipeline.tracking.view import View, card_of
from stages.contracts import UserError

__all__ = ["Job", "StageRun", "Tracker", "TrackingLostError", "open_sweep_tracker", "open_tracker"]

FLUSH_SECONDS = 2.0
RELOG = "python -m pipeline.tracking relog"

T = TypeVar("T")


class TrackingLostError(UserError):
    """MLflow failed while a job ran. Its results are complete in the store."""


class StageRun(Protocol):
    """A stage at work."""

    def metrics(self, values: Mapping[str, float], step: int, when: float) -> None:
        """Points of curves; `when` in seconds since the epoch."""

    def finish(self, entry: Entry) -> None:
        """The stage is published."""

    def fail(self, error: BaseException) -> None:
        """The stage ended without a result."""


class Tracker(Protocol):
    """A job at work."""

    def start_stage(self, node: str, stage: str, fingerprint: str, config: Mapping[str, Any]) -> StageRun:
        """A node that is about to be executed. Whoever calls this holds the store's lock of the fingerprint."""

    def hit(self, node: str, entry: Entry) -> None:
        """A node whose result was there."""

    def finish(self, nodes: Mapping[str, Mapping[str, Any]], ok: bool) -> None:
        """The end of the job; `nodes` is its summary, and its folder holds the files to show.

        Raises TrackingLostError if MLflow failed, now or earlier.
        """


def open_tracker(config: Tracking, runs: Path, job: Job, threads: int, say: Callable[[str], None] = print) -> Tracker:
    """`say` gets one line if MLflow fails later on. Raises UserError if it cannot be used now."""
    job = replace(job, environment=environment(threads), process=this_process())
    job.write()
    if not config.enabled:
        return NullTracker()
    view = _view(config, runs.resolve())
    try:
        view.close_dead()
        run_id = view.create_job(job)
    except failures() as error:
        raise UserError(f"MLflow failed: {explain(error)}", "tracking.uri") from None
    return _MlflowTracker(view, job, run_id, job.about, say)


def open_sweep_tracker(
    config: Tracking, runs: Path, sweep: str, about: Mapping[str, str], say: Callable[[str], None]
) -> Tracker:
    """For stages that run before the jobs that share them: they stand under the sweep itself. Raises UserError."""
    if not config.enabled:
        return NullTracker()
    view = _view(config, runs.resolve())
    try:
        view.close_dead()
        return _MlflowTracker(view, None, view.sweep(sweep), about, say)
    except failures() as error:
        raise UserError(f"MLflow failed: {explain(error)}", "tracking.uri") from None


@functools.cache
def _view(config: Tracking, runs: Path) -> View:
    """One for all jobs of this process: it knows what it has looked up."""
    return View(connect(config.uri, config.experiment, runs), config.artifacts)


class _MlflowTracker:
    def __init__(
        self, view: View, job: Job | None, run_id: str, about: Mapping[str, str], say: Callable[[str], None]
    ) -> None:
        self.view = view
        self._job = job
        self._run_id = run_id
        self._about = about
        self._say = say
        self._links: dict[str, str] = {}
        self._cards: dict[str, Path] = {}
        self._lost = ""

    def start_stage(self, node: str, stage: str, fingerprint: str, config: Mapping[str, Any]) -> StageRun:
        def start() -> str:
            self.view.close_dead(kind="stage", fingerprint=fingerprint)
            return self.view.create_stage(node, stage, fingerprint, config, self._run_id, self._about)

        run_id = self.attempt(start)
        if run_id is None:
            return _NullStageRun()
        self._links[node] = run_id
        return _MlflowStageRun(self, node, run_id)

    def hit(self, node: str, entry: Entry) -> None:
        self.keep_card(node, entry)
        run_id = self.attempt(lambda: self.view.show(entry, node, self._run_id, self._about))
        if run_id is not None:
            self._links[node] = run_id

    def finish(self, nodes: Mapping[str, Mapping[str, Any]], ok: bool) -> None:
        if job := self._job:
            self.attempt(lambda: self.view.close_job(self._run_id, job, nodes, self._links, self._cards, ok))
        if self._lost:
            raise TrackingLostError(
                f"MLflow failed ({self._lost}); results are stored, show them with `{RELOG}`", "tracking"
            )

    def keep_card(self, node: str, entry: Entry) -> None:
        if card := card_of(entry):
            self._cards[node] = card

    def attempt(self, action: Callable[[], T]) -> T | None:
        """Does it, unless MLflow has failed before: a server that is away shall cost its timeout once."""
        if self._lost:
            return None
        try:
            return action()
        except failures() as error:
            self._lost = explain(error)
            self._say(f"MLflow failed, the job goes on without it: {self._lost}")
            return None


class _MlflowStageRun:
    def __init__(self, tracker: _MlflowTracker, node: str, run_id: str) -> None:
        self._tracker = tracker
        self._node = node
        self._run_id = run_id
        self._waiting: list[Point] = []
        self._shown: set[tuple[str, int]] = set()
        self._flushed = 0.0

    def metrics(self, values: Mapping[str, float], step: int, when: float) -> None:
        self._waiting += [Point(name, float(value), step, when) for name, value in values.items()]
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self._flush()

    def finish(self, entry: Entry) -> None:
        self._flush()
        self._tracker.keep_card(self._node, entry)
        # A stage that resumed from a checkpoint has earlier points in its record than it showed here.
        self._tracker.attempt(lambda: self._tracker.view.complete(self._run_id, entry, self._shown))

    def fail(self, error: BaseException) -> None:
        self._flush()
        report = public("".join(traceback.format_exception(error)))

        def close() -> None:
            view = self._tracker.view
            view.log(self._run_id, tags={"error": public(f"{type(error).__name__}: {error}")})
            view.connection.client.log_text(self._run_id, report, "error.txt")
            view.close(self._run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")

        self._tracker.attempt(close)

    def _flush(self) -> None:
        points, self._waiting = self._waiting, []
        self._tracker.attempt(lambda: self._tracker.view.log(self._run_id, points=points))
        self._shown |= {(point.name, point.step) for point in points}
        self._flushed = time.monotonic()


class NullTracker:
    """tracking.enabled=false: results stay in the store."""

    def start_stage(self, node: str, stage: str, fingerprint: str, config: Mapping[str, Any]) -> StageRun:
        return _NullStageRun()

    def hit(self, node: str, entry: Entry) -> None:
        pass

    def finish(self, nodes: Mapping[str, Mapping[str, Any]], ok: bool) -> None:
        pass


class _NullStageRun:
    def metrics(self, values: Mapping[str, float], step: int, when: float) -> None:
        pass

    def finish(self, entry: Entry) -> None:
        pass

    def fail(self, error: BaseException) -> None:
        pass
