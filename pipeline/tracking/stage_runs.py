"""Runs of stages in MLflow: one for each result, made while the stage runs or later from the store."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pipeline.credentials import public
from pipeline.record.outcome import Outcome
from pipeline.store.store import Entry
from pipeline.tracking.artifacts import log_data, log_files
from pipeline.tracking.record import Record
from pipeline.tracking.runs import Runs
from pipeline.tracking.sweep_runs import close_dead
from pipeline.tracking.terms import curves, data_sets, fact_tags, summary_points, texts


@dataclass(frozen=True)
class Live:
    """The run of a stage that this process is executing."""

    run_id: str
    fingerprint: str
    shown: set[tuple[str, int]] = field(default_factory=set)
    """Points of its curves (name, step) that MLflow has."""


@dataclass(frozen=True)
class StageRuns:
    runs: Runs
    artifacts: str
    """Which files of a result to log: all, small (under 1 MB), none."""
    known: dict[str, str] = field(default_factory=dict)
    """Runs by fingerprint, as found so far: jobs of a sweep look up the same ones again and again."""
    live: dict[str, Live] = field(default_factory=dict)
    """Stages that this process is executing, by fingerprint."""

    def begin(
        self, record: Record, node: str, stage: str, fingerprint: str, config: Mapping[str, Any], parent: str
    ) -> Live:
        """Creates the run of a stage that starts now. The caller holds the store's lock of the fingerprint."""
        close_dead(self.runs, kind="stage", fingerprint=fingerprint)
        run_id = self._create(node, stage, fingerprint, config, record, parent)
        self.live[fingerprint] = Live(run_id, fingerprint)
        return self.live[fingerprint]

    def fail(self, live: Live, error: BaseException, report: str) -> None:
        """Closes the run of a stage that ended without a result."""
        self.live.pop(live.fingerprint, None)
        self.runs.log(live.run_id, tags={"error": public(f"{type(error).__name__}: {error}")})
        self.runs.client.log_text(live.run_id, report, "error.txt")
        self.runs.close(live.run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")

    def result(self, outcome: Outcome, record: Record, parent: str) -> str:
        """Returns the run of a stored result: the one that made it, or, if MLflow does not have it, a new one from the
        store. Empty if the store has lost the result."""
        key = outcome.fingerprint
        if key in self.known:
            return self.known[key]
        if live := self.live.pop(key, None):
            if entry := record.stored(outcome):
                self._complete(live, entry, time.time())
            return live.run_id
        with self.runs.lock:
            if made := self._made_by(key):
                return made
            entry = record.stored(outcome)
            if entry is None:
                return ""
            end = _made_at(entry)
            name, start = outcome.name, end - entry.meta["seconds"]
            run_id = self._create(name, entry.stage, key, entry.meta["config"], record, parent, start)
            self._complete(Live(run_id, key), entry, end)
            return run_id

    def _create(
        self, node: str, stage: str, fingerprint: str, config: Mapping[str, Any], record: Record, parent: str,
        start: float = 0.0,
    ) -> str:  # fmt: skip
        tags = {"node": node, "stage": stage, "fingerprint": fingerprint, **record.about}
        run_id = self.runs.create("stage", node, tags, parent, start)
        self.runs.log(run_id, params=texts(config))
        return run_id

    def _made_by(self, fingerprint: str) -> str:
        """Returns the run that made a result, or is about to finish it; empty if there is none."""
        if made := self._finished(fingerprint):
            return made
        close_dead(self.runs, kind="stage", fingerprint=fingerprint)
        # RUNNING: its process has published the result, which is how we know of it, and is logging it now; it may have
        # ended between the two searches
        running = self.runs.latest("RUNNING", kind="stage", fingerprint=fingerprint)
        return str(running.info.run_id) if running else self._finished(fingerprint)

    def _finished(self, fingerprint: str) -> str:
        if made := self.runs.latest("FINISHED", kind="stage", fingerprint=fingerprint):
            self.known[fingerprint] = str(made.info.run_id)
        return self.known.get(fingerprint, "")

    def _complete(self, live: Live, entry: Entry, end: float) -> None:
        """Logs everything of a result to its run, except the points that it has, and closes the run."""
        run_id, meta = live.run_id, entry.meta
        points = list(curves(entry.path))
        last_steps = {point.name: point.step for point in points}
        self.runs.log(run_id, points=(point for point in points if (point.name, point.step) not in live.shown))
        self.runs.log(run_id, tags=fact_tags(meta), points=summary_points(meta, last_steps, end))
        log_data(self.runs, run_id, data_sets(meta), entry.stage)
        log_files(self.runs, run_id, entry.path, self.artifacts)
        self.runs.close(run_id, "FINISHED", end)
        self.known[entry.fingerprint] = run_id


def _made_at(entry: Entry) -> float:
    return datetime.fromisoformat(entry.meta["created"]).timestamp()
