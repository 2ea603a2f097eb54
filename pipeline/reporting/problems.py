"""Reports the state of each job, and in one line each what is failed, missing, lost or running."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.process import is_dead, is_here
from pipeline.record.folders import JobRecord, Node
from pipeline.record.status import Status
from pipeline.reporting.choices import NONE
from pipeline.reporting.results import Results
from pipeline.reporting.table import models
from pipeline.store.store import SHORT
from pipeline.tracking.terms import cut

if TYPE_CHECKING:
    from pandas import DataFrame

DONE, SUPERSEDED = "done", "superseded"
STATES = {Status.DONE: DONE, Status.TO_RUN: "waiting: its turn has not come", Status.NOT_RUN: "missing: never began"}
LABEL = 100
"""Characters of a job's label in a line."""
MAX_LOST = 10
"""Lost results that get a line of their own."""


def problems(
    jobs: Sequence[JobRecord], settings: Sequence[dict[str, str]], states: Sequence[str], table: DataFrame,
    results: Results,
) -> list[str]:  # fmt: skip
    return [*_troubles(jobs, settings, states), *_lost(jobs, results), *_unmeasured(jobs, table)]


def state(job: JobRecord, results: Results) -> str:
    """Returns the state of a job: done, failed: ..., running: ..., stopped: ..., not planned: ..., waiting: ...,
    missing: ..."""
    if job.status in STATES:
        return STATES[job.status]
    if job.status == Status.FAILED:
        return f"{'failed' if job.nodes else 'not planned'}: {job.reason}"
    todo = [node for node in job.nodes.values() if node.status != Status.UNNEEDED and results.of(node) is None]
    working = [node for node in todo if results.is_working(node)]
    alive = bool(working) or (is_here(job.process) and not is_dead(job.process))
    if not todo and job.nodes and not alive:
        return DONE  # it was killed before it could record that
    at = working or todo
    where = f"at {at[0].name}, {len(todo)} of {len(job.nodes)} stages to go" if at else "all its stages are stored"
    return f"running: {where}" if alive else f"stopped: {job.reason or where}"


def states(jobs: Sequence[JobRecord], settings: Sequence[dict[str, str]], results: Results) -> list[str]:
    """Returns the state of each job. A failed one names a job with the same options that is done."""
    own = [state(job, results) for job in jobs]
    done = {tuple(options.items()): job for job, options, it in zip(jobs, settings, own, strict=True) if it == DONE}
    return [
        f"{SUPERSEDED} by {folder_of(again)}: {it}"
        if it.startswith("failed") and (again := done.get(tuple(options.items())))
        else it
        for options, it in zip(settings, own, strict=True)
    ]


def folder_of(job: JobRecord) -> str:
    return f"{job.folder.parent.name}/{job.folder.name}"


def _troubles(jobs: Sequence[JobRecord], settings: Sequence[dict[str, str]], states: Sequence[str]) -> list[str]:
    return [
        f"job {label(job, differing)}: {state}"
        for job, differing, state in zip(jobs, settings, states, strict=True)
        if state != DONE and not state.startswith(SUPERSEDED)
    ]


def label(job: JobRecord, differing: Mapping[str, str]) -> str:
    """Returns the label of a job in lines: its folder, and the options in which it differs."""
    text = " ".join(f"{key}={value}" for key, value in differing.items() if value != NONE) or job.name
    text = cut(text, LABEL)
    return f"{job.folder.name} ({text})" if text else job.folder.name


def _lost(jobs: Sequence[JobRecord], results: Results) -> list[str]:
    users: dict[tuple[str, str], list[tuple[int, Node]]] = {}
    for at, job in enumerate(jobs):
        for node in job.nodes.values():
            if (node.stage, node.fingerprint) in results.lost:
                users.setdefault((node.stage, node.fingerprint), []).append((at, node))
    lines = []
    for (stage, fingerprint), needed in users.items():
        whose = f"{needed[0][1].name} of job {', '.join(jobs[at].folder.name for at, _ in needed)}"
        trouble = results.lost[stage, fingerprint]
        lines.append(f"{stage}/{fingerprint[:SHORT]} ({whose}): {trouble}; its figures are from the summary")
    if len(lines) > MAX_LOST:
        lines = [*lines[:MAX_LOST], f"and {len(lines) - MAX_LOST} more results are not in the store any more"]
    return lines


def _unmeasured(jobs: Sequence[JobRecord], table: DataFrame) -> list[str]:
    lines = []
    for row in models(table).to_dict("records"):
        if not row["metric"]:
            whose = f"{row['label']} of job {jobs[row['jobs'][0]].folder.name}"
            lines.append(f"evaluate/{row['evaluation'][:SHORT]} ({whose}): has no metrics")
    return lines
