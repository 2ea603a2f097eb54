"""One job: what it studies, and the folder that Hydra keeps of it, where it can be read long after."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.credentials import public_values
from pipeline.disk import replace_text
from stages.contracts import UserError

RECORD = "job.json"
SUMMARY = "summary.json"
End = Literal["done", "failed", "interrupted"]


@dataclass(frozen=True)
class Job:
    name: str
    """Readable: what differs, `sparsity=0.7 distill=ce`."""
    sweep: str
    """Id of the sweep; empty for a single run."""
    folder: Path
    """Hydra's output folder."""
    config: dict[str, Any]
    """Resolved."""
    dials: dict[str, str]
    """The overrides that make this job what it is."""
    environment: dict[str, Any] = field(default_factory=dict)
    """What it runs in (`pipeline.environment`)."""
    choices: dict[str, str] = field(default_factory=dict)
    """Group -> option, as composed: `distill` -> `ce`."""
    process: str = ""
    """Which runs it, or ran it (`pipeline.process`)."""

    @property
    def key(self) -> str:
        """What tells jobs apart: the end of the folder's path, `<sweep>/<number>` or `jobs/<time>`."""
        place = self.folder.resolve()
        return f"{place.parent.name}/{place.name}"

    @property
    def about(self) -> dict[str, str]:
        """By what runs of this job and of its stages are found: its sweep, and the family of its model."""
        found = {"sweep": self.sweep, "family": self.config.get("model", {}).get("family", "")}
        return {key: value for key, value in found.items() if value}

    def write(self) -> None:
        """Leaves the resolved configuration, and what else there is to know of the job, in its folder."""
        record = public_values({key: value for key, value in asdict(self).items() if key != "folder"})
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_text(self.folder / RECORD, json.dumps(record, indent=1))

    @classmethod
    def read(cls, folder: Path) -> Job:
        """Raises UserError for a record that is damaged."""
        try:
            return cls(folder=folder, **json.loads((folder / RECORD).read_bytes()))
        except (ValueError, TypeError) as error:
            raise UserError(f"{folder / RECORD} cannot be read ({error!r}); repair or delete it", "runs") from None


def ended_jobs(runs: Path) -> list[Job]:
    """Jobs that came to an end, the earliest first."""
    folders = [path.parent for place in ("sweeps", "jobs") for path in (runs / place).rglob(SUMMARY)]
    jobs = [Job.read(folder) for folder in folders if (folder / RECORD).exists()]
    return sorted(jobs, key=ended_at)


def ended_at(job: Job) -> float:
    """Seconds since the epoch."""
    return (job.folder / SUMMARY).stat().st_mtime


def started_at(job: Job) -> float:
    return (job.folder / RECORD).stat().st_mtime


def read_summary(folder: Path) -> dict[str, dict[str, Any]]:
    """{node: {stage, fingerprint, status, seconds, metrics, error}}; empty for a job that did not come to its end, or
    whose record of that is damaged."""
    try:
        found: dict[str, dict[str, Any]] = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found


def end_of(nodes: Mapping[str, Mapping[str, Any]]) -> tuple[End, str]:
    """What became of a job by its summary, and why in one line."""
    if failed := [name for name, node in nodes.items() if node["status"] == "failed"]:
        return "failed", f"{failed[0]}: {nodes[failed[0]].get('error', '')}"
    if left := [name for name, node in nodes.items() if node["status"] == "not run"]:
        return "interrupted", f"interrupted at {left[0]}"
    return "done", ""


def went_well(nodes: Mapping[str, Mapping[str, Any]]) -> bool:
    return end_of(nodes)[0] == "done"


def is_done(folder: Path) -> bool:
    """Whether the job of this folder came to its end, and all went well."""
    nodes = read_summary(folder)
    return bool(nodes) and went_well(nodes)
