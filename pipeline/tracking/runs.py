"""Runs of an MLflow experiment: made, found by tags, filled within MLflow's limits, closed."""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from filelock import FileLock

from pipeline.process import this_process
from pipeline.tracking.terms import PARAM_CHARACTERS, TAG_CHARACTERS, Point, clean_name, cut, short_name

BATCH_METRICS = 1000
BATCH_OTHERS = 100
SEARCH_RUNS = 1000
"""MLflow's limits of one call, and its usual number of runs on a page."""


@dataclass(frozen=True)
class Runs:
    client: Any
    experiment: str
    """Id of the experiment."""
    lock: FileLock
    """Held while something that must exist once is looked for and made."""

    def create(self, kind: str, name: str, tags: Mapping[str, str], parent: str = "", start: float = 0.0) -> str:
        """Creates a run with status RUNNING, owned by this process. Returns its id."""
        all_tags = {
            **{clean_name(key): cut(value, TAG_CHARACTERS) for key, value in tags.items()},
            # MLflow's table expands a parent automatically if its children have this type; else it hides them.
            **({"mlflow.parentRunId": parent, "mlflow.runType": "evaluation"} if parent else {}),
            "kind": kind,
            "process": this_process(),
            "mlflow.source.name": "squarehead",
            "mlflow.source.type": "LOCAL",
            "mlflow.user": _user(),
        }
        started = _milliseconds(start or time.time())
        run = self.client.create_run(self.experiment, start_time=started, tags=all_tags, run_name=short_name(name))
        return str(run.info.run_id)

    def close(self, run_id: str, status: str, end: float = 0.0) -> None:
        self.client.set_terminated(run_id, status, end_time=_milliseconds(end or time.time()))

    def reopen(self, run_id: str) -> None:
        if self.client.get_run(run_id).info.status != "RUNNING":
            self.client.update_run(run_id, status="RUNNING")

    def search(self, status: str = "", **tags: str) -> list[Any]:
        """Returns all runs with these tags, the newest first."""
        found: list[Any] = []
        page = None
        while page != "":
            runs = self._page(status, tags, page)
            found += runs
            page = runs.token or ""
        return found

    def latest(self, status: str = "", by: str = "start_time", **tags: str) -> Any | None:
        """Returns the run with these tags that started, or ended, last. It fetches one run; a search fetches all."""
        return next(iter(self._page(status, tags, None, by, 1)), None)

    def _page(
        self, status: str, tags: Mapping[str, str], page: str | None, by: str = "start_time", size: int = SEARCH_RUNS
    ) -> Any:
        terms = [f"tags.`{key}` = '{value}'" for key, value in tags.items()]
        if status:
            terms.append(f"attributes.status = '{status}'")
        return self.client.search_runs(
            [self.experiment],
            " and ".join(terms),
            max_results=size,
            order_by=[f"attributes.{by} DESC"],
            page_token=page,
        )

    def log(
        self,
        run_id: str,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        points: Iterable[Point] = (),
        model: str | None = None,
    ) -> None:
        """Logs any number of points, parameters and tags in as few calls as MLflow allows. `model` is the id of the
        logged model that the points belong to."""
        from mlflow.entities import Metric, Param, RunTag

        values = [Metric(clean_name(p.name), p.value, _milliseconds(p.when), p.step, model) for p in points]
        for batch in _batches(values, BATCH_METRICS):
            self.client.log_batch(run_id, metrics=batch)
        written = [Param(clean_name(key), cut(value, PARAM_CHARACTERS)) for key, value in (params or {}).items()]
        for batch in _batches(written, BATCH_OTHERS):
            self.client.log_batch(run_id, params=batch)
        named = [RunTag(clean_name(key), cut(value, TAG_CHARACTERS)) for key, value in (tags or {}).items()]
        for batch in _batches(named, BATCH_OTHERS):
            self.client.log_batch(run_id, tags=batch)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[at : at + size] for at in range(0, len(items), size))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        return str(os.getuid())
