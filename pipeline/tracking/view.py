"""The tree of runs in MLflow: sweep -> jobs -> executed stages, and how a stored result is shown in it.

Tags tell runs apart: `kind` (sweep, job, stage); `sweep` (its id); `job` (its folder under runs/); `fingerprint`
(of a stage's result); `process` (who writes into the run while it is RUNNING).
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pipeline.headline import headline
from pipeline.job import Job
from pipeline.process import is_dead, this_process
from pipeline.store.store import Entry
from pipeline.tracking.server import Connection
from pipeline.tracking.values import (
    DIGEST_CHARACTERS,
    PARAM_CHARACTERS,
    TAG_CHARACTERS,
    Point,
    clean_name,
    curves,
    cut,
    data_sets,
    describe,
    environment_tags,
    fact_tags,
    job_params,
    numbers,
    summary_points,
    texts,
)

SMALL_BYTES = 1_000_000
BATCH_METRICS = 1000
BATCH_OTHERS = 100
SEARCH_RUNS = 1000
"""MLflow's limits of one call, and its usual number of runs on a page."""


@dataclass(frozen=True)
class View:
    connection: Connection
    artifacts: str = "all"
    """Which files of a result to show: all, small (under 1 MB), none."""
    makers: dict[str, str] = field(default_factory=dict)
    """Fingerprint -> run, of those found so far: jobs of a sweep ask for the same again and again."""

    # ---- runs ----

    def create(self, kind: str, name: str, tags: Mapping[str, str], parent: str = "", start: float = 0.0) -> str:
        """A new run with status RUNNING, by this process. Returns its id."""
        all_tags = {
            **{clean_name(key): cut(value, TAG_CHARACTERS) for key, value in tags.items()},
            # MLflow's table opens a parent by itself if its children are of this type; else it is all one sees.
            **({"mlflow.parentRunId": parent, "mlflow.runType": "evaluation"} if parent else {}),
            "kind": kind,
            "process": this_process(),
            "mlflow.source.name": "squarehead",
            "mlflow.source.type": "LOCAL",
            "mlflow.user": _user(),
        }
        run = self.connection.client.create_run(
            self.connection.experiment, start_time=_milliseconds(start or time.time()), tags=all_tags, run_name=name
        )
        return str(run.info.run_id)

    def close(self, run_id: str, status: str, end: float = 0.0) -> None:
        self.connection.client.set_terminated(run_id, status, end_time=_milliseconds(end or time.time()))

    def search(self, status: str = "", **tags: str) -> list[Any]:
        """All runs with these tags, the newest first."""
        found: list[Any] = []
        page = None
        while page != "":
            runs = self._page(status, tags, page)
            found += runs
            page = runs.token or ""
        return found

    def latest(self, status: str = "", by: str = "start_time", **tags: str) -> Any | None:
        """The run with these tags that started, or ended, last: one, where a search brings all of them whole."""
        return next(iter(self._page(status, tags, None, by, 1)), None)

    def _page(
        self, status: str, tags: Mapping[str, str], page: str | None, by: str = "start_time", size: int = SEARCH_RUNS
    ) -> Any:
        terms = [f"tags.`{key}` = '{value}'" for key, value in tags.items()]
        if status:
            terms.append(f"attributes.status = '{status}'")
        return self.connection.client.search_runs(
            [self.connection.experiment],
            " and ".join(terms),
            max_results=size,
            order_by=[f"attributes.{by} DESC"],
            page_token=page,
        )

    def made_by(self, fingerprint: str) -> str:
        """The run that made a result, or is just making it, or empty."""
        if fingerprint in self.makers:
            return self.makers[fingerprint]
        if runs := self.search("FINISHED", kind="stage", fingerprint=fingerprint):
            self.makers[fingerprint] = str(runs[0].info.run_id)
            return self.makers[fingerprint]
        self.close_dead(kind="stage", fingerprint=fingerprint)
        # RUNNING: its process has published the result, which is how we know of it, and is bringing it in here.
        runs = self.search("RUNNING", kind="stage", fingerprint=fingerprint)
        return str(runs[0].info.run_id) if runs else ""

    def close_dead(self, **tags: str) -> None:
        """Sets KILLED what a process of this machine left RUNNING when it was killed."""
        sweeps = set()
        for run in self.search("RUNNING", **tags):
            if is_dead(run.data.tags.get("process", "")):
                self.close(run.info.run_id, "KILLED")
                sweeps.add(run.data.tags.get("sweep", ""))
        for sweep in sweeps - {""}:
            self.settle(sweep)

    # ---- sweeps and jobs ----

    def create_job(self, job: Job, start: float = 0.0) -> str:
        """The run of a job, under that of its sweep. A job that is tried again goes on in the run it had."""
        params = job_params(job)
        tags = {"job": job.key, **job.about, **texts({"dial": job.dials})}
        if known := self.search(kind="job", job=job.key):
            run_id = str(known[0].info.run_id)
            params = {key: value for key, value in params.items() if clean_name(key) not in known[0].data.params}
            self.connection.client.update_run(run_id, status="RUNNING")
            self.log(run_id, tags={"process": this_process()})
            if job.sweep:
                self._run_again(self.sweep(job.sweep))
        else:
            parent = self.sweep(job.sweep, start) if job.sweep else ""
            run_id = self.create("job", job.name, tags, parent, start)
            if parent:
                self._run_again(parent)
        self.log(run_id, params=params, tags=environment_tags(job.environment))
        return run_id

    def _run_again(self, run_id: str) -> None:
        if self.connection.client.get_run(run_id).info.status != "RUNNING":
            self.connection.client.update_run(run_id, status="RUNNING")

    def sweep(self, sweep: str, start: float = 0.0) -> str:
        """The parent of a sweep's jobs, made by whichever of them comes first."""
        with self.connection.lock:
            if found := self.latest(kind="sweep", sweep=sweep):
                return str(found.info.run_id)
            return self.create("sweep", f"sweep {sweep}", {"sweep": sweep}, start=start)

    def settle(self, sweep: str) -> None:
        """Gives the parent of a sweep the status of its jobs so far: running, failed if any failed, finished."""
        with self.connection.lock:
            last = self.latest(by="end_time", kind="job", sweep=sweep)
            if not last:
                return
            running = self.latest("RUNNING", kind="job", sweep=sweep)
            failed = any(self.latest(status, kind="job", sweep=sweep) for status in ("FAILED", "KILLED"))
            for parent in self.search(kind="sweep", sweep=sweep):
                if running:
                    self.connection.client.update_run(parent.info.run_id, status="RUNNING")
                else:
                    status = "FAILED" if failed else "FINISHED"
                    self.close(parent.info.run_id, status, last.info.end_time / 1000)

    def close_job(
        self,
        run_id: str,
        job: Job,
        nodes: Mapping[str, Mapping[str, Any]],
        links: Mapping[str, str],
        cards: Mapping[str, Path],
        ok: bool,
        end: float = 0.0,
    ) -> None:
        """The end of a job: its headline, `<node>/<metric>` of all its nodes, links to the runs that made them, its
        files, and the cards of the models and data it began with (node -> file)."""
        when = end or time.time()
        values = headline(nodes)  # first of all: MLflow's page of a comparison begins with the first metric
        values |= {f"{node}/{name}": v for node, it in nodes.items() for name, v in numbers(it["metrics"]).items()}
        tags = {f"node.{node}": made for node, made in links.items()}
        tags["mlflow.note.content"] = describe(nodes, links, self.connection.experiment)
        self.log(run_id, tags=tags, points=[Point(name, value, 0, when) for name, value in values.items()])
        # Copied, not linked: unlike a stored result, a job's files may be written again.
        self.connection.client.log_artifacts(run_id, str(job.folder))
        for node, card in cards.items():
            self.connection.client.log_artifact(run_id, str(card), f"cards/{node}")
        self.close(run_id, "FINISHED" if ok else "FAILED", when)
        if job.sweep:
            self.settle(job.sweep)

    # ---- results ----

    def create_stage(
        self,
        node: str,
        stage: str,
        fingerprint: str,
        config: Mapping[str, Any],
        parent: str,
        about: Mapping[str, str],
        start: float = 0.0,
    ) -> str:
        """The run of a stage that starts, or once did; `about`: further tags, of the job it is for."""
        tags = {"node": node, "stage": stage, "fingerprint": fingerprint, **about}
        run_id = self.create("stage", node, tags, parent, start)
        self.log(run_id, params=texts(config))
        return run_id

    def show(self, entry: Entry, node: str, parent: str, about: Mapping[str, str]) -> str:
        """The run of a stored result: the one that made it, or, if MLflow does not know it, one from the store."""
        with self.connection.lock:
            if known := self.made_by(entry.fingerprint):
                return known
            meta = entry.meta
            start = _made(entry) - meta["seconds"]
            run_id = self.create_stage(node, entry.stage, entry.fingerprint, meta["config"], parent, about, start)
            self.complete(run_id, entry, end=_made(entry))
            return run_id

    def complete(self, run_id: str, entry: Entry, shown: Collection[tuple[str, int]] = (), end: float = 0.0) -> None:
        """Brings all of a result into its run, but for the points (name, step) already `shown`, and closes it."""
        meta, end = entry.meta, end or time.time()
        points = list(curves(entry.path))
        last_steps = {point.name: point.step for point in points}
        self.log(run_id, points=(point for point in points if (point.name, point.step) not in shown))
        self.log(run_id, tags=fact_tags(meta), points=summary_points(meta, last_steps, end))
        self._log_data(run_id, meta)
        self._log_files(run_id, entry.path)
        self.close(run_id, "FINISHED", end)
        self.makers[entry.fingerprint] = run_id

    def log(
        self,
        run_id: str,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        points: Iterable[Point] = (),
    ) -> None:
        """Any number of them, in as few calls as MLflow allows."""
        from mlflow.entities import Metric, Param, RunTag

        client = self.connection.client
        values = [Metric(clean_name(p.name), p.value, _milliseconds(p.when), p.step) for p in points]
        for batch in _batches(values, BATCH_METRICS):
            client.log_batch(run_id, metrics=batch)
        written = [Param(clean_name(key), cut(value, PARAM_CHARACTERS)) for key, value in (params or {}).items()]
        for batch in _batches(written, BATCH_OTHERS):
            client.log_batch(run_id, params=batch)
        named = [RunTag(clean_name(key), cut(value, TAG_CHARACTERS)) for key, value in (tags or {}).items()]
        for batch in _batches(named, BATCH_OTHERS):
            client.log_batch(run_id, tags=batch)

    def _log_data(self, run_id: str, meta: Mapping[str, Any]) -> None:
        """Digests as MLflow's data sets: the dashboard shows those in a column of their own."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        found = [
            DatasetInput(
                Dataset(data.name, data.digest[:DIGEST_CHARACTERS], "sha256", json.dumps({"sha256": data.digest})),
                [InputTag("mlflow.data.context", meta["stage"])],
            )
            for data in data_sets(meta)
        ]
        if found:
            self.connection.client.log_inputs(run_id, datasets=found)

    def _log_files(self, run_id: str, folder: Path) -> None:
        if self.artifacts == "none":
            return
        client = self.connection.client
        root = _local(client.get_run(run_id).info.artifact_uri)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            if self.artifacts == "small" and path.stat().st_size >= SMALL_BYTES:
                continue
            inside = path.relative_to(folder)
            if root:
                _link(path, root / inside)
            else:
                client.log_artifact(run_id, str(path), inside.parent.as_posix() if inside.parent.name else None)


def card_of(entry: Entry) -> Path | None:
    """The card that a model or a data set came with."""
    card = entry.path / "README.md"
    return card if card.exists() else None


def _made(entry: Entry) -> float:
    return datetime.fromisoformat(entry.meta["created"]).timestamp()


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[at : at + size] for at in range(0, len(items), size))


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


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
