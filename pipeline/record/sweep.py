"""The record of a sweep, as planned before its first job begins: `sweep.json` in its folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.process import is_dead
from pipeline.record.files import with_current_keys, write_json
from pipeline.record.outcome import Outcomes, read_outcomes
from stages.contracts import UserError

RECORD = "sweep.json"
SHARED = "shared.json"


@dataclass(frozen=True)
class SweepNode:
    """A planned node."""

    stage: str
    fingerprint: str


@dataclass(frozen=True)
class SweepJob:
    num: int
    """Its number, which is also the name of its folder."""
    name: str
    overrides: list[str]
    swept_parameters: dict[str, str]
    """The overrides in which it differs from other jobs of the sweep."""
    nodes: dict[str, SweepNode] = field(default_factory=dict)
    """Its nodes by name; empty if it cannot be planned."""
    error: str = ""
    """Why it cannot be planned."""


@dataclass(frozen=True)
class Sweep:
    folder: Path
    command: list[str]
    """The command line that starts and resumes it."""
    cwd: str
    """Directory in which the command was typed."""
    started: str
    """ISO 8601."""
    process: str
    """Process that launches the jobs (`pipeline.process`); empty if they do not know it: another sweeper's, on a
    cluster."""
    cache: str
    """Folder of sources."""
    parallel: int
    """Jobs side by side; 0: a cluster decides."""
    continues: str
    """Id of the unfinished sweep of the same jobs before this one; empty if there is none."""
    jobs: list[SweepJob]
    ended: str = ""
    """ISO 8601; empty as long as jobs may follow, and after a kill."""

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def alive(self) -> bool:
        """Returns whether it may still launch jobs: it has not ended, and its process is not known to be gone."""
        return bool(self.process) and not self.ended and not is_dead(self.process)

    def write(self) -> None:
        record = {key: value for key, value in asdict(self).items() if key != "folder"}
        write_json(record, self.folder / RECORD)

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        """Reads the record of a sweep. Raises UserError for a folder that is not a sweep's."""
        try:
            record = json.loads((folder / RECORD).read_bytes())
            jobs = [_job(job) for job in record.pop("jobs")]
            return cls(folder=folder, jobs=jobs, **record)
        except FileNotFoundError:
            raise UserError(f"no {RECORD} in {folder}; expected the folder of a sweep", "ID") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder / RECORD} cannot be read ({error!r})", "ID") from None

    def job(self, num: int) -> SweepJob | None:
        return next((job for job in self.jobs if job.num == num), None)


def add_job(folder: Path, job: SweepJob) -> Sweep:
    """Adds a job that a sweeper chose on the way to the record."""
    with FileLock(folder / f"{RECORD}.lock"):
        sweep = Sweep.read(folder)
        sweep = replace(sweep, jobs=[*sweep.jobs, job])
        sweep.write()
        return sweep


def end(folder: Path) -> Sweep:
    """Marks the sweep as ended, whatever became of its jobs."""
    ended = replace(Sweep.read(folder), ended=datetime.now(UTC).isoformat(timespec="seconds"))
    ended.write()
    return ended


def sweeps(runs: Path) -> list[Sweep]:
    """Returns all sweeps whose record can be read, the newest first."""
    found = []
    for path in records(runs):
        with suppress(UserError):
            found.append(Sweep.read(path.parent))
    return found


def records(runs: Path) -> list[Path]:
    return sorted(runs.glob(f"sweeps/*/{RECORD}"), reverse=True)


def users(jobs: Sequence[SweepJob]) -> Counter[str]:
    """Returns the number of jobs that have each fingerprint."""
    return Counter(fingerprint for job in jobs for fingerprint in {it.fingerprint for it in job.nodes.values()})


def shared(jobs: Sequence[SweepJob]) -> set[str]:
    """Returns the fingerprints that several jobs have in common."""
    return {fingerprint for fingerprint, count in users(jobs).items() if count > 1}


def read_shared(folder: Path) -> Outcomes:
    """Reads the outcomes of what ran before the jobs, by fingerprint."""
    return read_outcomes(folder / SHARED)


def _job(record: Mapping[str, Any]) -> SweepJob:
    nodes = {name: SweepNode(**node) for name, node in record.get("nodes", {}).items()}
    return SweepJob(**{**with_current_keys(record), "nodes": nodes})


MECHANICS = ("runs", "dry_run", "until", "force", "cache.", "tracking", "hydra", "threads", "reference")
"""Options that change how a job runs but not its results; a job is not named by them."""


def swept_parameters(overrides: Sequence[str], common: Sequence[str] = ()) -> dict[str, str]:
    """Returns the overrides that distinguish a job: of a sweep, those that are not `common` to its jobs."""
    given = [line for line in overrides if not line.lstrip("+~").startswith(MECHANICS)]
    given = [line for line in given if line not in common] or given
    return {key: value for key, _, value in (line.partition("=") for line in given)}


def name_of(parameters: dict[str, str]) -> str:
    """Returns the name of a job, `sparsity=0.5 distill=ce`."""
    return " ".join(f"{key}={value}" for key, value in parameters.items()) or "defaults"
