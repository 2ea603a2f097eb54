"""Reads the folders of jobs and sweeps, at any time from before a job begins until long after it ended.

The folder of a job holds `.hydra/` (its command), job.json, plan.json and, at its end, summary.json. A sweep's folder
holds one folder a job, `sweep.json`, which lists the jobs before the first begins, and `shared.json`, the results that
were made for several of them before. Sweeps of early versions have neither of these two files.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pipeline.process import is_dead
from pipeline.record.files import read_json, with_current_keys
from pipeline.record.job import PLAN, RECORD, SUMMARY, Job
from pipeline.record.outcome import Outcome, Outcomes, is_damaged, read_outcomes, status_of
from pipeline.record.status import Status
from pipeline.record.sweep import RECORD as SWEEP
from pipeline.record.sweep import Sweep, SweepJob, read_shared
from stages.contracts import UserError

PROGRAM = "python -m pipeline"


@dataclass
class Node(Outcome):
    """A node of a job: as planned, and its outcome; TO_RUN where there is no summary (yet)."""

    inputs: dict[str, str] | None = None
    """Role -> fingerprint; None where there is no plan."""


@dataclass(frozen=True)
class JobRecord(Job):
    """Contents of a job's folder; the job may not have begun."""

    overrides: list[str] = field(default_factory=list)
    """Overrides of its command line, without Hydra's own."""
    nodes: dict[str, Node] = field(default_factory=dict)
    """Its nodes by name; empty if it has no plan because its configuration was refused or it was interrupted at
    once."""
    status: Status = Status.NOT_RUN
    """TO_RUN while its sweep runs and will reach it, NOT_RUN if the sweep ended before."""
    reason: str = ""
    """Why the job is not done, in one line."""

    @property
    def command(self) -> str:
        """Returns the command that runs this job alone."""
        return shlex.join([*PROGRAM.split(), *self.overrides])

    @property
    def fingerprints(self) -> set[str]:
        """Returns the fingerprints of its results."""
        return {node.fingerprint for node in self.nodes.values()}


@dataclass(frozen=True)
class Folder:
    """The folder of a job or a sweep, as read."""

    path: Path
    jobs: list[JobRecord]
    command: str
    """The command that made it; the same command resumes it."""
    started: str
    """ISO 8601; empty where that is unknown."""
    shared: Outcomes
    """Nodes that ran for several jobs before these began, by fingerprint."""


def named(asked: Path, runs: Path) -> Path:
    """Returns the folder itself, or the job or sweep of that name under `runs`."""
    return next((at for at in (asked, runs / "jobs" / asked, runs / "sweeps" / asked) if at.is_dir()), asked)


def newest(runs: Path) -> list[Path]:
    """Returns the newest folder of a job or sweep with a result, then the newest of the other kind, if there is one.
    Raises UserError if there is none."""
    kinds = [[*runs.glob("jobs/*")], [*runs.glob("sweeps/*")]]
    ended = [[at for at in kind if any(any(at.rglob(name)) for name in (SUMMARY, SWEEP))] for kind in kinds]
    if not any(ended):
        raise UserError(f"no run has finished under {runs.resolve()}; `make run` makes one", "runs")
    found = [max(kind, key=lambda folder: folder.name) for kind in ended if kind]
    return sorted(found, key=lambda folder: folder.name, reverse=True)


def runs_of(path: Path, otherwise: Path) -> Path:
    """Returns the folder of runs that a job or sweep belongs to: the nearest parent with a store, else `otherwise`."""
    return next((above for above in path.resolve().parents if (above / "store").is_dir()), otherwise)


def read(path: Path) -> Folder:
    """Reads the folder of a job or a sweep. Raises UserError for any other folder."""
    if not path.is_dir():
        raise UserError(f"no folder {path}; expected the folder of a run or sweep", "FOLDER")
    sweep = None
    with suppress(UserError):  # an old one, a job, or a damaged record
        sweep = Sweep.read(path)
    places = {path} if _is_job(path) else set(filter(_is_job, path.iterdir()))
    places |= {path / str(job.num) for job in sweep.jobs} if sweep else set()
    if not places:
        raise UserError(f"no job in {path}; expected the folder of a run or sweep, or nothing for the newest", "FOLDER")
    jobs = [read_job(place, sweep) for place in sorted(places, key=lambda at: (len(at.name), at.name))]
    command = shlex.join(sweep.command) if sweep else _command(path, jobs[0])
    return Folder(path, jobs, command, sweep.started[:19] if sweep else _started(path), read_shared(path))


def read_job(folder: Path, sweep: Sweep | None = None) -> JobRecord:
    """Reads a job's folder. What is missing or unreadable there is taken from the record of its sweep."""
    asked = sweep.job(int(folder.name)) if sweep and folder.name.isdigit() else None
    record = with_current_keys(read_json(folder / RECORD))
    overrides = asked.overrides if asked else _yaml(folder / ".hydra" / "overrides.yaml") or []
    planned = read_json(folder / PLAN).get("nodes")
    if planned is None and asked:
        planned = {name: asdict(node) for name, node in asked.nodes.items()}
    outcomes = read_outcomes(folder / SUMMARY)
    nodes = _nodes(planned or {}, outcomes)
    process = record.get("process", "")
    status, reason = status_of(outcomes) if outcomes else _before_its_end(folder, asked, process, sweep)
    if not nodes and not reason and not asked:
        dry = "dry_run=true" in overrides
        reason = "it was a dry run" if dry else "its configuration was refused, or it was interrupted at once"
        status = Status.FAILED
    return JobRecord(
        folder=folder,
        name=record.get("name") or (asked and asked.name) or " ".join(overrides) or "defaults",
        sweep=record.get("sweep", sweep.id if sweep else ""),
        config=record.get("config", {}),
        swept_parameters=record.get("swept_parameters", {}),
        environment=record.get("environment", {}),
        choices=record.get("choices") or _choices(folder),
        process=process,
        overrides=[str(line) for line in overrides],
        nodes=nodes,
        status=status,
        reason=reason,
    )


def _is_job(path: Path) -> bool:
    return path.is_dir() and any((path / name).exists() for name in (RECORD, PLAN, SUMMARY, ".hydra"))


def _nodes(planned: Mapping[str, Mapping[str, Any]], outcomes: Outcomes) -> dict[str, Node]:
    """Returns the nodes of the plan, in its order, with their outcomes."""
    found = {}
    for name in [*planned, *(name for name in outcomes if name not in planned)]:
        plan, became = planned.get(name, {}), outcomes.get(name)
        sources = plan.get("inputs")
        inputs = None
        if sources is not None and all(source in planned for source in sources.values()):
            inputs = {role: str(planned[source]["fingerprint"]) for role, source in sources.items()}
        if became:
            found[name] = Node(**vars(became), inputs=inputs)
        else:
            status = Status.UNNEEDED if plan.get("status") == Status.UNNEEDED else Status.TO_RUN
            found[name] = Node(name, str(plan["stage"]), str(plan["fingerprint"]), status, inputs=inputs)
    return found


def _before_its_end(folder: Path, asked: SweepJob | None, process: str, sweep: Sweep | None) -> tuple[Status, str]:
    there = [name for name in (RECORD, PLAN) if (folder / name).exists()]
    broken = [name for name in there if not read_json(folder / name)]
    broken += [SUMMARY] if is_damaged(folder / SUMMARY) else []
    if broken:
        return Status.INTERRUPTED, f"{broken[0]} cannot be read"
    if asked and asked.error:
        return Status.FAILED, asked.error
    if there:
        return Status.INTERRUPTED if is_dead(process) else Status.RUNNING, ""
    return Status.TO_RUN if sweep and sweep.alive else Status.NOT_RUN, ""


def _choices(folder: Path) -> dict[str, str]:
    composed = _yaml(folder / ".hydra" / "hydra.yaml")
    found = composed.get("hydra", {}).get("runtime", {}).get("choices", {}) if isinstance(composed, dict) else {}
    return {key: str(value) for key, value in found.items() if "/" not in key and value is not None}


def _command(path: Path, first: JobRecord) -> str:
    """Returns the command from Hydra's record of the sweep, or the job's own."""
    recorded = _yaml(path / "multirun.yaml")
    if not recorded:
        return first.command
    given = recorded["hydra"]["overrides"]
    hydras = [line for line in given["hydra"] if not line.startswith("hydra.mode=")]
    return shlex.join([*PROGRAM.split(), "-m", *hydras, *given["task"]])


def _started(path: Path) -> str:
    """Parses the time in a folder's name, 20261122-090107-532035."""
    with suppress(ValueError):
        return datetime.strptime(path.name[:15], "%Y%m%d-%H%M%S").isoformat()
    return ""


def _yaml(path: Path) -> Any:
    """Reads a YAML file without resolving interpolations; empty if it is missing or unreadable."""
    try:
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, ValueError, AttributeError):
        return {}
