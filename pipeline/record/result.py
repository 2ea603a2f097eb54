"""A stored result as described by its meta.json, for reports and estimates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from stages import json_lines
from stages.contracts import CURVES

WEIGHTS = ("model", "masks")
"""Prefixes of the names of weight files in a checkpoint."""


@dataclass(frozen=True)
class Result:
    """A result, or, if the store has lost it (`folder` is None), the part that a job's summary kept."""

    stage: str
    fingerprint: str
    inputs: Mapping[str, str]
    """Role -> fingerprint."""
    metrics: Mapping[str, float]
    seconds: float
    folder: Path | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, meta: Mapping[str, Any], folder: Path, **more: Any) -> Self:
        known = {key: meta[key] for key in ("stage", "fingerprint", "inputs", "metrics", "seconds")}
        return cls(**known | more, folder=folder, meta=meta)

    @property
    def config(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.meta.get("config", {})
        return found

    @property
    def facts(self) -> Mapping[str, Any]:
        """Returns what the stage recorded besides its metrics."""
        found: Mapping[str, Any] = self.meta.get("facts", {})
        return found

    @property
    def num_bytes(self) -> int:
        return sum(file["bytes"] for file in self.meta.get("files", {}).values())

    @property
    def weight_files_bytes(self) -> int | None:
        """Returns the size on disk of a checkpoint's weights and masks, without tokenizers. None if it is no checkpoint
        or is lost."""
        files = self.meta.get("files", {})
        sizes = [facts["bytes"] for name, facts in files.items()
                 if name.startswith(WEIGHTS) and name.endswith(".safetensors")]  # fmt: skip
        return sum(sizes) or None

    def read(self, name: str) -> Any:
        """Reads a JSON file of the result; None if there is no readable one of that name."""
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8")) if self.folder else None
        except (OSError, ValueError):
            return None

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """Returns (step, value) of what the stage logged under that name."""
        path = self.folder / CURVES if self.folder else None
        if path is None or not path.exists():
            return []
        return [(row["step"], row["metrics"][metric]) for row in json_lines.read(path) if metric in row["metrics"]]
