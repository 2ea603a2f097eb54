"""The jobs of a run or sweep on disk: their options, their plans, and how far they came.

A folder of a job, from its beginning to its end, holds: `.hydra/` (its command), job.json and plan.json, summary.json.
A sweep's folder holds one for each job; `sweep.json`, which lists them before the first begins; and `shared.json`, what
ran for several of them before. Old ones have none of these two.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from pipeline.process import is_dead
from pipeline.record.job import RECORD, SUMMARY
from pipeline.record.outcome import Outcome, Outcomes, is_damaged, read_outcomes, status_of
from pipeline.record.status import Status
from pipeline.record.sweep import RECORD as SWEEP
from pipeline.record.sweep import SHARED
from stages.contracts import UserError

PLAN = "plan.json"
State = Literal["done", "failed", "unfinished", "not planned", "waiting", "missing"]
"""unfinished: running, killed or interrupted. not planned: it ended before it had a plan. waiting: its sweep runs and
has not come to it. missing: it never began."""
STATES: dict[Status, State] = {Status.DONE: "done", Status.FAILED: "failed", Status.INTERRUPTED: "unfinished"}
PROGRAM = "python -m pipeline"


@dataclass
class Node(Outcome):
    """One node of a job: what was planned, and how it ended; TO_RUN where there is no summary (yet)."""

    inputs: dict[str, str] | None = None
    """Role -> fingerprint; None where there is no plan."""


@dataclass(frozen=True)
class JobRecord:
    """What a job left in its folder."""

    folder: Path
    name: str
    sweep: str
    state: State
    reason: str
    """Why it is not done, in one line."""
    dials: dict[str, str]
    config: dict[str, Any]
    overrides: list[str]
    """Of its command line, without Hydra's own."""
    choices: dict[str, str]
    """Group -> option, as composed."""
    environment: dict[str, Any]
    process: str
    """Which ran it (`pipeline.process`); empty where that is unknown."""
    nodes: dict[str, Node]

    @property
    def command(self) -> str:
        """The command that runs this job alone."""
        return shlex.join([*PROGRAM.split(), *self.overrides])

    @property
    def fingerprints(self) -> set[str]:
        """Of its results."""
        return {node.fingerprint for node in self.nodes.values()}


@dataclass(frozen=True)
class Folder:
    """A run or a sweep."""

    path: Path
    jobs: list[JobRecord]
    command: str
    """The command that made it, and makes it again."""
    started: str
    """ISO 8601; empty where that is unknown."""
    shared: dict[str, dict[str, Any]]
    """By fingerprint, the nodes that ran for several jobs before these began, as in a summary."""


def named(asked: Path, runs: Path) -> Path:
    """The folder itself, or the run or sweep of that name."""
    return next((at for at in (asked, runs / "jobs" / asked, runs / "sweeps" / asked) if at.is_dir()), asked)


def newest(runs: Path) -> list[Path]:
    """The newest folder of a run or sweep that has come to something, then the newest of the other kind, if there is
    one. Raises UserError if there is none."""
    kinds = [[*runs.glob("jobs/*")], [*runs.glob("sweeps/*")]]
    ended = [[at for at in kind if any(any(at.rglob(name)) for name in (SUMMARY, SWEEP))] for kind in kinds]
    if not any(ended):
        raise UserError(f"no run has finished under {runs.resolve()}; `make run` makes one", "runs")
    found = [max(kind, key=lambda folder: folder.name) for kind in ended if kind]
    return sorted(found, key=lambda folder: folder.name, reverse=True)


def read(path: Path) -> Folder:
    """Raises UserError for a folder that is none of a run or sweep."""
    if not path.is_dir():
        raise UserError(f"no folder {path}; expected the folder of a run or sweep", "FOLDER")
    listed = _json(path / SWEEP)
    places = [path] if _is_job(path) else sorted(filter(_is_job, path.iterdir()), key=_number)
    asked = {str(job["num"]): job for job in listed.get("jobs", [])}
    jobs = [_job(place, asked.get(place.name, {})) for place in places]
    alive = bool(listed.get("process")) and not is_dead(listed["process"])
    began = {place.name for place in places}
    jobs += [_not_begun(path, job, alive) for num, job in asked.items() if num not in began]
    if not jobs:
        raise UserError(f"no job in {path}; expected the folder of a run or sweep, or nothing for the newest", "FOLDER")
    jobs.sort(key=lambda job: _number(job.folder))
    command = shlex.join(listed["command"]) if listed.get("command") else _command(path, jobs[0])
    started = str(listed.get("started", ""))[:19] or _started(path)
    return Folder(path, jobs, command, started, _json(path / SHARED))


def runs_of(path: Path, otherwise: Path) -> Path:
    """The folder of results that a run or sweep belongs to: the nearest above it with a store."""
    return next((above for above in path.resolve().parents if (above / "store").is_dir()), otherwise)


def _is_job(path: Path) -> bool:
    return path.is_dir() and any((path / name).exists() for name in (RECORD, PLAN, SUMMARY, ".hydra"))


def _number(place: Path) -> tuple[int, str]:
    return len(place.name), place.name


def _job(folder: Path, asked: Mapping[str, Any]) -> JobRecord:
    record = _json(folder / RECORD)
    overrides = [str(line) for line in _yaml(folder / ".hydra" / "overrides.yaml") or asked.get("overrides", [])]
    dials = record.get("dials") or dict(line.partition("=")[::2] for line in overrides)
    nodes = _nodes(_json(folder / PLAN).get("nodes", asked.get("nodes", {})), read_outcomes(folder / SUMMARY))
    dry = "it was a dry run" if "dry_run=true" in overrides else ""
    state, reason = _state(folder, nodes, asked.get("error", "") or dry)
    return JobRecord(
        folder=folder,
        name=record.get("name") or asked.get("name") or " ".join(overrides) or "defaults",
        sweep=record.get("sweep", ""),
        state=state,
        reason=reason,
        dials=dials,
        config=record.get("config", {}),
        overrides=overrides,
        choices=record.get("choices") or _choices(folder),
        environment=record.get("environment", {}),
        process=record.get("process", ""),
        nodes=nodes,
    )


def _not_begun(sweep: Path, asked: Mapping[str, Any], alive: bool) -> JobRecord:
    overrides = [str(line) for line in asked.get("overrides", [])]
    dials = dict(line.partition("=")[::2] for line in overrides)
    nodes = _nodes(asked.get("nodes", {}), {})
    folder = sweep / str(asked["num"])
    state: State = "not planned" if asked.get("error") else "waiting" if alive else "missing"
    reason = asked.get("error") or ("its turn has not come" if alive else "never began")
    name = asked.get("name", "")
    return JobRecord(folder, name, sweep.name, state, reason, dials, {}, overrides, {}, {}, "", nodes)


def _nodes(planned: Mapping[str, Mapping[str, Any]], outcomes: Outcomes) -> dict[str, Node]:
    """Those of the plan, in its order, with their outcomes."""
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


def _state(folder: Path, nodes: Mapping[str, Node], refused: str) -> tuple[State, str]:
    broken = [name for name in (RECORD, PLAN) if (folder / name).exists() and not _json(folder / name)]
    broken += [SUMMARY] if is_damaged(folder / SUMMARY) else []
    if broken:
        return "unfinished", f"{broken[0]} cannot be read"
    if not nodes:
        return "not planned", refused or "its configuration was refused, or it was interrupted at once"
    if not (folder / SUMMARY).exists():
        return "unfinished", ""
    status, reason = status_of(dict(nodes))
    return STATES[status], reason


def _choices(folder: Path) -> dict[str, str]:
    composed = _yaml(folder / ".hydra" / "hydra.yaml")
    found = composed.get("hydra", {}).get("runtime", {}).get("choices", {}) if isinstance(composed, dict) else {}
    return {key: str(value) for key, value in found.items() if "/" not in key and value is not None}


def _command(path: Path, first: JobRecord) -> str:
    """From Hydra's record of the sweep, or the job's own."""
    recorded = _yaml(path / "multirun.yaml")
    if not recorded:
        return first.command
    given = recorded["hydra"]["overrides"]
    hydras = [line for line in given["hydra"] if not line.startswith("hydra.mode=")]
    return shlex.join([*PROGRAM.split(), "-m", *hydras, *given["task"]])


def _started(path: Path) -> str:
    """Folders are named by the time: 20261122-090107-532035."""
    day, _, rest = path.name.partition("-")
    time = rest.partition("-")[0]
    if len(day) == 8 and len(time) == 6 and (day + time).isdigit():
        return f"{day[:4]}-{day[4:6]}-{day[6:]}T{time[:2]}:{time[2:4]}:{time[4:]}"
    return ""


def _json(path: Path) -> dict[str, Any]:
    """Empty if it is missing or unreadable."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _yaml(path: Path) -> Any:
    """Empty if it is missing or unreadable; interpolations stay as they are."""
    try:
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, ValueError, AttributeError):
        return {}
