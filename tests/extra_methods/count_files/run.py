"""A stage: counts the files of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages.contracts import Artifact, Log

from .spec import CountOptions


def run(config: CountOptions, inputs: Mapping[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    count = len(list(inputs["model"].path.glob(f"*{config.suffix}")))
    (out / "count.txt").write_text(str(count))
    return {"files": float(count)}
