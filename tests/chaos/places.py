"""Places of the campaign: what lies in one after a line, and whether that is what an undisturbed line leaves."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import disk
from pipeline.record.job import SUMMARY
from pipeline.store.__main__ import main as store_main
from pipeline.store.store import Entry, Store
from tests import tiny
from tests.chaos.commands import Line, quiet
from tests.running import Sources

TIMED = ("benchmark",)
"""Stages whose results hold times, which no two runs have in common."""
UNTIMED_METRICS = ("sparsity", "weight_bytes")
"""Of these stages, what is no time, by the ends of the names."""
TIMES = ("seconds", "per_second")
"""Ends of the names of metrics and facts that say how long something took."""
TEMPORARY = (".partial", ".new", ".tmp", "-journal", "-wal")
"""Ends of the names of files that are there only while something is being written."""


@dataclass(frozen=True)
class Place:
    """A folder with runs and a cache of its own."""

    folder: Path
    sources: Sources

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def stores(self) -> tuple[Store, Store]:
        return Store(self.runs / "store"), Store(self.cache / "store", "cache.folder")

    def line(self, *overrides: str) -> Line:
        """A small run or sweep on the tiny texts."""
        small = tiny.options(self.sources.model, self.runs, self.cache)
        flags = [word for word in overrides if word.startswith("-")]
        rest = [word for word in overrides if not word.startswith("-")]
        texts = ["data=text", f"data.path={self.sources.texts}"]
        return Line("pipeline.__main__", [*flags, *small, *texts, *rest], self.folder)

    def report(self) -> Line:
        return Line("pipeline.report", ["--runs", str(self.runs)], self.folder)

    def store_line(self, *words: str, cache: bool = False) -> Line:
        which = ["--cache", str(self.cache)] if cache else []
        return Line("pipeline.store.__main__", ["--runs", str(self.runs), *which, *words], self.folder)

    def entries(self) -> Iterator[tuple[Store, Entry]]:
        for store in self.stores:
            yield from ((store, entry) for entry in store.entries())

    def num_published(self) -> int:
        return sum(1 for store in self.stores for _ in store.root.glob("[!.]*/*/meta.json"))

    def bytes_of_runs(self) -> int:
        return disk.used_bytes([self.runs])


def make(folder: Path, sources: Sources) -> Place:
    """An empty one."""
    disk.delete(folder)
    folder.mkdir(parents=True)
    return Place(folder, sources)


def copied(place: Place, folder: Path) -> Place:
    disk.delete(folder)
    shutil.copytree(place.folder, folder, symlinks=True)
    return Place(folder, place.sources)


# ---- what was made ----


def results(place: Place) -> dict[str, Any]:
    """{stage/fingerprint: all of the result that must be the same whenever it is made}."""
    found = {}
    for _, entry in place.entries():
        meta = entry.meta
        metrics = {k: v for k, v in meta["metrics"].items() if entry.stage not in TIMED or k.endswith(UNTIMED_METRICS)}
        facts = {} if entry.stage in TIMED else meta["facts"]
        metrics, facts = _untimed(metrics), _untimed(facts)
        content = "" if entry.stage in TIMED else entry.content
        inputs = [meta["config"], meta["inputs"], meta["version"]]
        found[f"{entry.stage}/{entry.fingerprint}"] = [content, metrics, facts, inputs]
    return json.loads(json.dumps(found, sort_keys=True))  # type: ignore[no-any-return]


def _untimed(value: Any) -> Any:
    """Without what says how long something took."""
    if isinstance(value, dict):
        return {key: _untimed(item) for key, item in value.items() if not key.endswith(TIMES)}
    return [_untimed(item) for item in value] if isinstance(value, list) else value


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted({*found, *expected}):
        if key not in expected:
            yield f"{key} is made that an undisturbed line does not make"
        elif key not in found:
            yield f"{key} is not made"
        elif found[key] != expected[key]:
            parts = [
                name
                for name, ours, theirs in zip(
                    ("files", "metrics", "facts", "inputs"), found[key], expected[key], strict=True
                )
                if ours != theirs
            ]
            yield f"{key} has other {', '.join(parts)} than an undisturbed line leaves"


# ---- what was left ----


def faults(place: Place, expected: Mapping[str, Any]) -> list[str]:
    """One line for each thing that an undisturbed line would not leave."""
    return [*differences(results(place), expected), *_left(place), *_damaged(place), *_of_mlflow(place)]


def _left(place: Place) -> Iterator[str]:
    for store in place.stores:
        yield from (f"scratch is left: {path.name}" for path in store.root.glob(".scratch/*"))
        known = {f"{entry.stage}-{entry.path.name}.lock" for entry in store.entries()}
        for lock in store.root.glob(".locks/*"):
            if lock.name not in known:
                yield f"a lock is left: {lock.name}"
            elif disk.is_held(lock):
                yield f"a lock is held: {lock.name}"
    for path in disk.files_below(place.folder):
        if path.name.endswith(TEMPORARY) and not path.name.startswith("mlflow.db"):
            yield f"a temporary file is left: {path.relative_to(place.folder)}"


def _damaged(place: Place) -> Iterator[str]:
    for words in ([], ["--cache", str(place.cache)]):
        with quiet():
            code = store_main(["--runs", str(place.runs), *words, "verify"])
        if code:
            yield f"verify {' '.join(words[:1])} ends with {code}"


def _of_mlflow(place: Place) -> Iterator[str]:
    file = place.runs / "mlflow.db"
    if not file.exists():
        return
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
        (told,) = connection.execute("PRAGMA integrity_check").fetchone()
        if told != "ok":
            yield f"MLflow's database: {told}"
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{file}")
    (experiment,) = client.search_experiments(filter_string="name = 'squarehead'")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    if running := [run.info.run_name for run in runs if run.info.status == "RUNNING"]:
        yield f"MLflow has runs that nobody runs: {', '.join(running)}"
    finished = Counter(
        run.data.tags["fingerprint"] for run in runs if run.info.status == "FINISHED" and "fingerprint" in run.data.tags
    )
    if twice := [key for key, count in finished.items() if count > 1]:
        yield f"MLflow has {len(twice)} results twice"
    made = {entry.fingerprint for _, entry in place.entries()}
    if missing := made - set(finished):
        yield f"MLflow misses {len(missing)} results"


def newest_summary(place: Place) -> dict[str, Any]:
    paths = sorted(place.runs.glob(f"jobs/*/{SUMMARY}"), key=os.path.getmtime)
    return json.loads(paths[-1].read_text()) if paths else {}
