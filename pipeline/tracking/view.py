"""MLflow as a projection of the record: `View.sync` logs what it lacks of a job and its results.

Runs form a tree: sweep -> jobs -> results, each result below the job that made it. Tags distinguish them: `kind`
(sweep, job, stage); `sweep` (its id); `job` (its folder under runs/); `fingerprint` (of a stage's result); `process`
(which writes into the run while it is RUNNING).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import yaml

from pipeline import labels
from pipeline.credentials import public
from pipeline.process import this_process
from pipeline.record.headline import headline
from pipeline.record.job import Job
from pipeline.record.outcome import status_of
from pipeline.record.status import Status
from pipeline.tracking.artifacts import log_data
from pipeline.tracking.models import log_models
from pipeline.tracking.parameters import job_parameters
from pipeline.tracking.record import Record
from pipeline.tracking.runs import Runs
from pipeline.tracking.stage_runs import Live, StageRuns
from pipeline.tracking.sweep_runs import close_dead, close_sweep, log_chart, sweep_run
from pipeline.tracking.terms import (
    DataSet,
    Point,
    clean_name,
    data_sets,
    describe_nodes,
    environment_tags,
    run_name,
)

CONFIG = "config.yaml"
"""Name of the artifact with the whole configuration of a job."""
STATUSES = {Status.DONE: "FINISHED", Status.FAILED: "FAILED", Status.INTERRUPTED: "KILLED"}
"""MLflow's status of a job that ended."""


@dataclass(frozen=True)
class View:
    runs: Runs
    artifacts: str = "all"
    """Which files of a result to log: all, small (under 1 MB), none."""
    known: dict[str, str] = field(default_factory=dict)
    """Runs of jobs by their keys, as found so far."""

    @cached_property
    def stages(self) -> StageRuns:
        return StageRuns(self.runs, self.artifacts)

    def sync(self, record: Record) -> None:
        """Logs what MLflow lacks of a record. What it has stays; repeating the call changes nothing."""
        parent = self._parent(record)
        links = {}
        for outcome in record.outcomes.values():
            if outcome.status.is_stored and (made := self.stages.result(outcome, record, parent)):
                links[outcome.name] = made
        if record.job and record.ended:
            self._end(record.job, record, parent, links)

    def start(self, record: Record) -> None:
        """Marks a job's runs as running, by this process."""
        close_dead(self.runs)
        run_id = self._parent(record)
        if record.job:
            self.runs.reopen(run_id)
            self.runs.log(run_id, tags={"process": this_process()})
            if record.sweep:
                self.runs.reopen(sweep_run(self.runs, record.sweep))

    def begin(self, record: Record, node: str, stage: str, fingerprint: str, config: Mapping[str, Any]) -> Live:
        """Creates the run of a stage that starts now. The caller holds the store's lock of the fingerprint."""
        return self.stages.begin(record, node, stage, fingerprint, config, self._parent(record))

    def watch_machine(self, job: Job) -> Callable[[], None]:
        """Logs the machine's load into the run of a job that has started. Returns the function that ends this."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        uri = self.runs.client.tracking_uri
        monitor = SystemMetricsMonitor(self.known[job.key], resume_logging=True, tracking_uri=uri)
        monitor.start()
        stop: Callable[[], None] = monitor.finish
        return stop

    def _parent(self, record: Record) -> str:
        job = record.job
        if job is None:
            return sweep_run(self.runs, record.sweep, record.started) if record.sweep else ""
        if job.key not in self.known:
            self.known[job.key] = self._job_run(job, record)
        return self.known[job.key]

    def _job_run(self, job: Job, record: Record) -> str:
        """Returns the run of a job, under that of its sweep. A job that is tried again continues in its earlier run."""
        params = job_parameters(job)
        sweep = sweep_run(self.runs, job.sweep, record.started) if job.sweep else ""
        if there := self.runs.latest(kind="job", job=job.key):
            run_id = str(there.info.run_id)
            params = {key: value for key, value in params.items() if clean_name(key) not in there.data.params}
        else:
            run_id = self.runs.create("job", run_name(job), {"job": job.key, **job.about}, sweep, record.started)
        self.runs.log(run_id, params=params, tags=environment_tags(job.environment))
        self.runs.client.log_text(run_id, public(yaml.safe_dump(job.config, sort_keys=False)), CONFIG)
        return run_id

    def _end(self, job: Job, record: Record, run_id: str, links: Mapping[str, str]) -> None:
        """Logs the job's headline, links to the runs of its results, its data sets and files, and the cards of the
        models and data it began with."""
        found = headline(record.outcomes)
        entries = {name: entry for name, it in record.outcomes.items() if (entry := record.stored(it))}
        tags = {"mlflow.note.content": describe_nodes(record.outcomes, links, self.runs.experiment)}
        if found.speedup:
            tags["best_backend"] = found.speedup.protocol["backend"]
        points = [Point(name, value, 0, record.ended) for name, value in found.numbers().items()]
        self.runs.log(run_id, tags=tags, points=points)
        log_models(self.runs, run_id, entries, links)
        path = labels.source(job.config.get("data", {}))
        name = labels.label(path) or path or "data"
        digests = dict.fromkeys(data.digest for entry in entries.values() for data in data_sets(entry.meta)
                                if data.name == "data")  # fmt: skip
        log_data(self.runs, run_id, [DataSet(name, digest) for digest in digests], "job")
        # copied, not linked: unlike a stored result, a job's files may be written again
        self.runs.client.log_artifacts(run_id, str(job.folder))
        for node, entry in entries.items():
            if (card := entry.path / "README.md").exists():
                self.runs.client.log_artifact(run_id, str(card), f"cards/{node}")
        self.runs.close(run_id, STATUSES[status_of(record.outcomes)[0]], record.ended)
        if job.sweep:
            log_chart(self.runs, job, found, record.ended)
            close_sweep(self.runs, job.sweep)
