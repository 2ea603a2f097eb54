"""MLflow as a projection of the record: `View.sync` brings in what it does not know of a job and its results.

Runs form a tree: sweep -> jobs -> results, each result below whoever made it. Tags distinguish them: `kind` (sweep,
job, stage); `sweep` (its id); `job` (its folder under runs/); `fingerprint` (of a stage's result); `process` (which
writes into the run while it is RUNNING).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pipeline.credentials import public
from pipeline.plan import Stores
from pipeline.process import is_dead, this_process
from pipeline.record.headline import Headline, headline
from pipeline.record.job import Job
from pipeline.record.outcome import Outcome, Outcomes, status_of
from pipeline.record.status import Status
from pipeline.store.store import Entry
from pipeline.tracking.models import log_models
from pipeline.tracking.runs import Runs
from pipeline.tracking.terms import (
    DIGEST_CHARACTERS,
    DataSet,
    Point,
    clean_name,
    curves,
    data_sets,
    describe_nodes,
    environment_tags,
    fact_tags,
    job_params,
    series,
    short_name,
    summary_points,
    texts,
)

SMALL_BYTES = 1_000_000
NAME_WIDTH = 60
"""Characters of a job's name that its run is called by; its options are parameters and tags."""
QUALITY = "quality"
"""Tag of a sweep: the metric by which its jobs are compared first."""
STATUSES = {Status.DONE: "FINISHED", Status.FAILED: "FAILED", Status.INTERRUPTED: "KILLED"}
"""How a job ended, in MLflow's words."""


@dataclass(frozen=True)
class Record:
    """A job with the outcomes of its nodes so far; or without a job, what runs before the jobs of a sweep."""

    outcomes: Outcomes
    stores: Stores
    sweep: str
    """Id; empty for a job of its own."""
    about: Mapping[str, str]
    """Tags by which its runs are found."""
    job: Job | None = None
    started: float = 0.0
    """Seconds since the epoch; 0: now."""
    ended: float = 0.0
    """The same; 0: it has not."""

    @classmethod
    def of_job(cls, job: Job, outcomes: Outcomes, stores: Stores, started: float = 0.0, ended: float = 0.0) -> Record:
        return cls(outcomes, stores, job.sweep, job.about, job, started, ended)


@dataclass(frozen=True)
class Live:
    """The run of a stage that this process is executing."""

    run_id: str
    fingerprint: str
    shown: set[tuple[str, int]] = field(default_factory=set)
    """Points of its curves (name, step) that MLflow has."""


@dataclass(frozen=True)
class View:
    runs: Runs
    artifacts: str = "all"
    """Which files of a result to show: all, small (under 1 MB), none."""
    known: dict[str, str] = field(default_factory=dict)
    """Fingerprint, or key of a job -> run, of those found so far: jobs of a sweep ask for the same again and again."""
    live: dict[str, Live] = field(default_factory=dict)
    """By fingerprint."""

    def sync(self, record: Record) -> None:
        """Brings in what MLflow does not know of a record. What it knows stays; the same call again changes nothing."""
        parent = self._parent(record)
        links = {}
        for outcome in record.outcomes.values():
            if outcome.status.is_stored and (made := self._result(outcome, record, parent)):
                links[outcome.name] = made
        if record.job and record.ended:
            self._end(record.job, record, parent, links)

    # ---- jobs and sweeps ----

    def start(self, record: Record) -> None:
        """Marks a job's runs as running, by this process."""
        self.close_dead()
        run_id = self._parent(record)
        if record.job:
            self.runs.reopen(run_id)
            self.runs.log(run_id, tags={"process": this_process()})
            if record.sweep:
                self.runs.reopen(self.sweep_run(record.sweep))

    def _parent(self, record: Record) -> str:
        job = record.job
        if job is None:
            return self.sweep_run(record.sweep, record.started) if record.sweep else ""
        if job.key not in self.known:
            self.known[job.key] = self._job_run(job, record)
        return self.known[job.key]

    def _job_run(self, job: Job, record: Record) -> str:
        """The run of a job, under that of its sweep. A job that is tried again goes on in the run it had."""
        params = job_params(job)
        sweep = self.sweep_run(job.sweep, record.started) if job.sweep else ""
        if there := self.runs.latest(kind="job", job=job.key):
            run_id = str(there.info.run_id)
            params = {key: value for key, value in params.items() if clean_name(key) not in there.data.params}
        else:
            tags = {"job": job.key, **job.about, **texts({"swept": job.swept_parameters})}
            run_id = self.runs.create("job", short_name(job.name, NAME_WIDTH), tags, sweep, record.started)
        self.runs.log(run_id, params=params, tags=environment_tags(job.environment))
        return run_id

    def sweep_run(self, sweep: str, start: float = 0.0) -> str:
        """The parent of a sweep's jobs, made by whichever of them comes first."""
        with self.runs.lock:
            if found := self.runs.latest(kind="sweep", sweep=sweep):
                return str(found.info.run_id)
            return self.runs.create("sweep", f"sweep {sweep}", {"sweep": sweep}, start=start)

    def close_sweep(self, sweep: str) -> None:
        """Gives the run of a sweep the status of its jobs so far: running, failed if any failed, finished."""
        with self.runs.lock:
            last = self.runs.latest(by="end_time", kind="job", sweep=sweep)
            parent = self.runs.latest(kind="sweep", sweep=sweep)
            if not last or not parent:
                return
            if self.runs.latest("RUNNING", kind="job", sweep=sweep):
                self.runs.reopen(parent.info.run_id)
                return
            failed = any(self.runs.latest(status, kind="job", sweep=sweep) for status in ("FAILED", "KILLED"))
            self.runs.close(parent.info.run_id, "FAILED" if failed else "FINISHED", last.info.end_time / 1000)

    def close_dead(self, **tags: str) -> None:
        """Sets KILLED what a process of this machine left RUNNING when it was killed."""
        sweeps = set()
        for run in self.runs.search("RUNNING", **tags):
            if is_dead(run.data.tags.get("process", "")):
                self.runs.close(run.info.run_id, "KILLED")
                sweeps.add(run.data.tags.get("sweep", ""))
        for sweep in sweeps - {""}:
            self.close_sweep(sweep)

    def _end(self, job: Job, record: Record, run_id: str, links: Mapping[str, str]) -> None:
        """What the job came to, links to the runs of its results, its data sets and files, and the cards of the models
        and data it began with."""
        found = headline(record.outcomes)
        entries = {name: entry for name, it in record.outcomes.items() if (entry := _stored(it, record.stores))}
        tags = {f"node.{node}": made for node, made in links.items()}
        tags["mlflow.note.content"] = describe_nodes(record.outcomes, links, self.runs.experiment)
        if found.speedup:
            tags["best_backend"] = found.speedup.protocol["backend"]
        points = [Point(name, value, 0, record.ended) for name, value in found.numbers().items()]
        self.runs.log(run_id, tags=tags, points=points)
        log_models(self.runs, run_id, entries, links)
        source = str(job.config.get("data", {}).get("path", "data"))
        digests = dict.fromkeys(data.digest for entry in entries.values() for data in data_sets(entry.meta)
                                if data.name == "data")  # fmt: skip
        self._log_data(run_id, [DataSet(source, digest) for digest in digests], "job")
        # copied, not linked: unlike a stored result, a job's files may be written again
        self.runs.client.log_artifacts(run_id, str(job.folder))
        for node, entry in entries.items():
            if (card := entry.path / "README.md").exists():
                self.runs.client.log_artifact(run_id, str(card), f"cards/{node}")
        self.runs.close(run_id, STATUSES[status_of(record.outcomes)[0]], record.ended)
        if job.sweep:
            self._chart(job, found, record.ended)
            self.close_sweep(job.sweep)

    def _chart(self, job: Job, found: Headline, when: float) -> None:
        """On the sweep's run quality over sparsity, a metric for each line of the chart, with sparsity in percent as
        its step."""
        if found.sparsity is None or found.quality is None:
            return
        values = {found.quality.name: found.quality.value, "recovery": found.recovery}
        values["best_decode_speedup"] = found.speedup.value if found.speedup else None
        step, line = round(100 * found.sparsity), series(job)
        points = [Point(f"{name}/{line}", value, step, when) for name, value in values.items() if value is not None]
        self.runs.log(self.sweep_run(job.sweep), tags={QUALITY: found.quality.name}, points=points)

    # ---- results ----

    def begin(self, record: Record, node: str, stage: str, fingerprint: str, config: Mapping[str, Any]) -> Live:
        """The run of a stage that starts now. Whoever calls this holds the store's lock of the fingerprint."""
        self.close_dead(kind="stage", fingerprint=fingerprint)
        run_id = self._stage_run(node, stage, fingerprint, config, record, self._parent(record))
        self.live[fingerprint] = Live(run_id, fingerprint)
        return self.live[fingerprint]

    def fail(self, live: Live, error: BaseException, report: str) -> None:
        """The stage ended without a result."""
        self.live.pop(live.fingerprint, None)
        self.runs.log(live.run_id, tags={"error": public(f"{type(error).__name__}: {error}")})
        self.runs.client.log_text(live.run_id, report, "error.txt")
        self.runs.close(live.run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")

    def _result(self, outcome: Outcome, record: Record, parent: str) -> str:
        """The run of a stored result: the one that made it, or, if MLflow does not know it, one from the store. Empty
        where the store has lost it."""
        key = outcome.fingerprint
        if key in self.known:
            return self.known[key]
        if live := self.live.pop(key, None):
            if entry := _stored(outcome, record.stores):
                self._complete(live, entry, time.time())
            return live.run_id
        with self.runs.lock:
            if made := self._made_by(key):
                return made
            entry = _stored(outcome, record.stores)
            if entry is None:
                return ""
            end = _made_at(entry)
            name, start = outcome.name, end - entry.meta["seconds"]
            run_id = self._stage_run(name, entry.stage, key, entry.meta["config"], record, parent, start)
            self._complete(Live(run_id, key), entry, end)
            return run_id

    def _stage_run(
        self, node: str, stage: str, fingerprint: str, config: Mapping[str, Any], record: Record, parent: str,
        start: float = 0.0,
    ) -> str:  # fmt: skip
        tags = {"node": node, "stage": stage, "fingerprint": fingerprint, **record.about}
        run_id = self.runs.create("stage", node, tags, parent, start)
        self.runs.log(run_id, params=texts(config))
        return run_id

    def _made_by(self, fingerprint: str) -> str:
        """The run that made a result, or is just making it, or empty."""
        if made := self._finished(fingerprint):
            return made
        self.close_dead(kind="stage", fingerprint=fingerprint)
        # RUNNING: its process has published the result, which is how we know of it, and is bringing it in here; it may
        # have ended between the two searches
        running = self.runs.latest("RUNNING", kind="stage", fingerprint=fingerprint)
        return str(running.info.run_id) if running else self._finished(fingerprint)

    def _finished(self, fingerprint: str) -> str:
        if made := self.runs.latest("FINISHED", kind="stage", fingerprint=fingerprint):
            self.known[fingerprint] = str(made.info.run_id)
        return self.known.get(fingerprint, "")

    def _complete(self, live: Live, entry: Entry, end: float) -> None:
        """Brings all of a result into its run, but for the points that it has, and closes it."""
        run_id, meta = live.run_id, entry.meta
        points = list(curves(entry.path))
        last_steps = {point.name: point.step for point in points}
        self.runs.log(run_id, points=(point for point in points if (point.name, point.step) not in live.shown))
        self.runs.log(run_id, tags=fact_tags(meta), points=summary_points(meta, last_steps, end))
        self._log_data(run_id, data_sets(meta), entry.stage)
        self._log_files(run_id, entry.path)
        self.runs.close(run_id, "FINISHED", end)
        self.known[entry.fingerprint] = run_id

    def _log_data(self, run_id: str, found: Iterable[DataSet], context: str) -> None:
        """Digests as MLflow's data sets: the dashboard shows those in a column of their own."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(data.name, data.digest[:DIGEST_CHARACTERS], "sha256", json.dumps({"sha256": data.digest})),
                [InputTag("mlflow.data.context", context)],
            )
            for data in found
        ]
        if inputs:
            self.runs.client.log_inputs(run_id, datasets=inputs)

    def _log_files(self, run_id: str, folder: Path) -> None:
        if self.artifacts == "none":
            return
        client = self.runs.client
        root = _local(client.get_run(run_id).info.artifact_uri)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            if self.artifacts == "small" and path.stat().st_size >= SMALL_BYTES:
                continue
            inside = path.relative_to(folder)
            if root:
                _link(path, root / inside)
            else:
                client.log_artifact(run_id, str(path), inside.parent.as_posix() if inside.parent.name else None)


def _stored(outcome: Outcome, stores: Stores) -> Entry | None:
    """Sources are in the user's cache."""
    if not outcome.status.is_stored:
        return None
    found = (store.find(outcome.stage, outcome.fingerprint) for store in (stores.runs, stores.cache))
    return next(filter(None, found), None)


def _made_at(entry: Entry) -> float:
    return datetime.fromisoformat(entry.meta["created"]).timestamp()


def _local(artifact_uri: str) -> Path | None:
    """The folder of a run's artifacts, if it is one of a file system that is mounted here."""
    parts = urlsplit(artifact_uri)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return Path(artifact_uri) if Path(artifact_uri).is_absolute() else None


def _link(source: Path, target: Path) -> None:
    """A second name of the same file: weights take no room twice. A copy where file systems do not allow that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
