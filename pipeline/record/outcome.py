"""Outcomes of a job's nodes: `summary.json` in its folder, `shared.json` in the folder of its sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.credentials import public_values
from pipeline.record import metrics as measured
from pipeline.record.files import sealed, unsealed, write_json
from pipeline.record.metrics import Metrics
from pipeline.record.status import Status


@dataclass
class Outcome:
    """A node of a job: as planned, and how it ended."""

    name: str
    stage: str
    fingerprint: str
    status: Status = Status.NOT_RUN
    seconds: float = 0.0
    """Time to make its result, whenever that was."""
    metrics: Metrics = field(default_factory=dict)
    error: str = ""
    """Why it has no result, in one line."""

    def value(self, metric: str) -> float | None:
        return self.metrics[metric].value if metric in self.metrics else None

    def as_json(self) -> dict[str, Any]:
        return {
            "node": self.name,
            "stage": self.stage,
            "fingerprint": self.fingerprint,
            "status": self.status.value,
            "seconds": self.seconds,
            "metrics": {name: metric.as_json() for name, metric in self.metrics.items()},
            "error": self.error,
        }

    @classmethod
    def from_json(cls, name: str, record: Mapping[str, Any]) -> Outcome:
        return cls(
            name=record.get("node", name),
            stage=record["stage"],
            fingerprint=record["fingerprint"],
            status=Status(record["status"]),
            seconds=float(record["seconds"]),
            metrics=measured.from_json(record["stage"], record["metrics"]),
            error=record.get("error", ""),
        )


Outcomes = dict[str, Outcome]
"""Outcomes by node; for the stages that jobs of a sweep share, by fingerprint."""


def write_outcomes(outcomes: Outcomes, path: Path) -> None:
    """Writes the outcomes, each sealed with a digest, so that later changes of its figures are detected."""
    write_json({key: sealed(public_values(outcome.as_json())) for key, outcome in outcomes.items()}, path)


def read_outcomes(path: Path) -> Outcomes:
    """Reads outcomes; empty if there is no record (yet), or it is damaged."""
    return _outcomes(path) or {}


def is_damaged(path: Path) -> bool:
    """Returns whether a record is there but unreadable, or was changed."""
    return path.exists() and _outcomes(path) is None


def _outcomes(path: Path) -> Outcomes | None:
    try:
        record = json.loads(path.read_bytes())
        return {key: Outcome.from_json(key, unsealed(outcome)) for key, outcome in record.items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def status_of(outcomes: Mapping[str, Outcome]) -> tuple[Status, str]:
    """Returns the status of a job by its outcomes, and in one line why it is not done."""
    if failed := [it for it in outcomes.values() if it.status == Status.FAILED]:
        return Status.FAILED, f"{failed[0].name}: {failed[0].error}"
    if left := [it for it in outcomes.values() if it.status in (Status.NOT_RUN, Status.TO_RUN)]:
        return Status.INTERRUPTED, f"interrupted at {left[0].name}"
    return Status.DONE, ""
