"""Finds what may be deleted from a store: results that no plan names, and remains of killed processes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.record import sweep
from pipeline.store import record
from pipeline.store.store import RESUME, RESUMES, SHORT, Entry, Store
from stages.contracts import UserError

SECONDS_A_DAY = 86400


@dataclass(frozen=True)
class Garbage:
    path: Path
    why: str


def plans(runs: Path) -> dict[Path, set[str]]:
    """Returns the fingerprints that each plan.json below sweeps/ and jobs/ names.

    Raises UserError for a plan that cannot be read: the results it needs must not be deleted.
    """
    found = {}
    for path in sorted(path for folder in ("sweeps", "jobs") for path in (runs / folder).rglob("plan.json")):
        try:
            nodes = json.loads(path.read_bytes())["nodes"]
            found[path] = {node["fingerprint"] for node in nodes.values() if node.get("fingerprint")}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"cannot read {path} ({error!r}); repair or delete it", "runs") from error
    return found


def planned(runs: Path) -> set[str]:
    """Returns all fingerprints that a plan names: plans of jobs, and of sweeps, which plan their jobs before those
    begin.

    Raises UserError for a plan that cannot be read.
    """
    found = set().union(*plans(runs).values())
    for path in sweep.records(runs):
        jobs = sweep.Sweep.read(path.parent).jobs
        found |= {node.fingerprint for job in jobs for node in job.nodes.values()}
    return found


def collect(
    store: Store,
    planned: set[str],
    keep_days: float = 0,
    spare_inputs: bool = True,
    users: Iterable[Entry] = (),
) -> Iterator[Garbage]:
    """Returns what no plan names: abandoned scratch folders, and results older than `keep_days`.

    With `spare_inputs`, everything that a kept result was made from is kept too; `users` are results of another store
    that count as kept. Checkpoints of a planned result that is not finished are kept.
    """
    entries = list(store.entries())
    young = {entry.fingerprint for entry in entries if _age_days(entry) < keep_days}
    kept = planned | young
    if spare_inputs:
        made_from = {entry.fingerprint: set(entry.meta["inputs"].values()) for entry in entries}
        kept = _closure(kept.union(*(entry.meta["inputs"].values() for entry in users)), made_from)
    for entry in entries:
        if entry.fingerprint not in kept:
            yield Garbage(entry.path, "in no plan")
    unfinished = {fingerprint[:SHORT] for fingerprint in planned - {entry.fingerprint for entry in entries}}
    for scratch in store.scratch():
        if scratch.name.rpartition("-")[2] not in unfinished:
            yield Garbage(scratch, "abandoned")
            continue
        for path in sorted(scratch.iterdir()):
            if path.name not in (RESUME, RESUMES):
                yield Garbage(path, "half made")


def _closure(start: set[str], made_from: dict[str, set[str]]) -> set[str]:
    kept: set[str] = set()
    waiting = list(start)
    while waiting:
        fingerprint = waiting.pop()
        if fingerprint not in kept:
            kept.add(fingerprint)
            waiting.extend(made_from.get(fingerprint, ()))
    return kept


def _age_days(entry: Entry) -> float:
    return age_seconds(entry) / SECONDS_A_DAY


def age_seconds(entry: Entry) -> float:
    """Returns the time since the result was published."""
    return max(0.0, time.time() - (entry.path / record.META).stat().st_mtime)
