"""A job: what it studies, and its folder, which Hydra makes and where it can be read later."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.record.files import with_current_keys, write_json
from pipeline.record.outcome import Outcomes, read_outcomes, status_of
from pipeline.record.status import Status
from stages.contracts import UserError

RECORD = "job.json"
PLAN = "plan.json"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Job:
    name: str
    """Tells readers how it differs from other jobs: `sparsity=0.7 distill=ce`."""
    sweep: str
    """Id of the sweep; empty for a single run."""
    folder: Path
    """Hydra's output folder."""
    config: dict[str, Any]
    """The resolved configuration."""
    swept_parameters: dict[str, str]
    """The overrides that distinguish it from other jobs."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Versions and machine it runs on (`pipeline.environment`)."""
    choices: dict[str, str] = field(default_factory=dict)
    """Group -> option, as composed: `distill` -> `ce`."""
    process: str = ""
    """Process that runs or ran it (`pipeline.process`)."""

    @property
    def key(self) -> str:
        """Returns a unique key of the job, the end of its folder's path: `<sweep>/<number>` or `jobs/<time>`."""
        place = self.folder.resolve()
        return f"{place.parent.name}/{place.name}"

    @property
    def about(self) -> dict[str, str]:
        """Returns the tags by which runs of this job and of its stages are found: its sweep, and the family of its
        model."""
        found = {"sweep": self.sweep, "family": self.config.get("model", {}).get("family", "")}
        return {key: value for key, value in found.items() if value}

    @property
    def outcomes(self) -> Outcomes:
        """Returns the outcomes of its nodes; empty for a job that has not ended."""
        return read_outcomes(self.folder / SUMMARY)

    def write(self) -> None:
        """Writes the resolved configuration and the other fields into the job's folder."""
        record = {key: value for key, value in asdict(self).items() if key != "folder"}
        write_json(record, self.folder / RECORD)

    @classmethod
    def read(cls, folder: Path) -> Job:
        """Reads the record of a job. Raises UserError if it is damaged."""
        try:
            return cls(folder=folder, **with_current_keys(json.loads((folder / RECORD).read_bytes())))
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{folder / RECORD} cannot be read ({error!r}); repair or delete it", "runs") from None


def ended_jobs(runs: Path) -> list[Job]:
    """Returns the jobs that have ended, the earliest first."""
    folders = [path.parent for place in ("sweeps", "jobs") for path in (runs / place).rglob(SUMMARY)]
    jobs = [Job.read(folder) for folder in folders if (folder / RECORD).exists()]
    return sorted(jobs, key=ended_at)


def ended_at(job: Job) -> float:
    """Returns the time the job ended, in seconds since the epoch."""
    return (job.folder / SUMMARY).stat().st_mtime


def started_at(job: Job) -> float:
    return (job.folder / RECORD).stat().st_mtime


def is_done(folder: Path) -> bool:
    """Returns whether the job of this folder ended and all its nodes went well."""
    outcomes = read_outcomes(folder / SUMMARY)
    return bool(outcomes) and status_of(outcomes)[0] == Status.DONE
