"""Reads what stages took on this machine before, from the records of stored results (meta.json only)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from engine import cpu
from pipeline.plan import Stores
from pipeline.record.result import Result
from pipeline.store import record
from pipeline.store.store import SHORT
from stages.contracts import Checkpoint
from stages.index import STAGES

NEWEST = 60
"""Number of results of a stage that are read."""
SOURCES = tuple(name for name, spec in STAGES.items() if spec.is_source and spec.makes is Checkpoint)
"""Stages whose results know how many parameters they have."""


@dataclass(frozen=True)
class Past(Result):
    """A stored result that this processor made."""

    parameters: float | None = None
    """Parameter count of the model at the root of its inputs; None where that is gone."""

    @property
    def version(self) -> str:
        """Returns the version of the stage that made it."""
        return str(self.meta["version"])

    @property
    def threads(self) -> int:
        return int(self.meta["environment"]["threads"])

    @property
    def device(self) -> str:
        return str(self.meta.get("device", "cpu"))

    @property
    def step_seconds(self) -> float | None:
        """Seconds of a training's steps, without validations, loading and writing; None for other stages."""
        rate = self.metrics.get("tokens_per_second") if "training" in self.config else None
        return self.metrics["tokens"] / rate if rate else None


class History:
    """Past results in the stores of a run. Each is read once; of each stage, only the newest are read."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._metas: dict[str, dict[str, Any]] = {}
        self._pasts: dict[str, list[Past]] = {}

    def of(self, stage: str) -> list[Past]:
        """Returns results of a stage that this processor made, the newest first."""
        if stage not in self._pasts:
            there = [path for path in self._folders.values() if path.parent.name == stage]
            newest = sorted(there, key=lambda path: path.stat().st_mtime, reverse=True)[:NEWEST]
            metas = [meta for path in newest if (meta := self.meta(path.name))]
            self._pasts[stage] = [self._past(meta) for meta in metas if _made_here(meta)]
        return self._pasts[stage]

    def meta(self, fingerprint: str) -> dict[str, Any]:
        """Returns the record of a result by its fingerprint; empty if it is gone or unreadable."""
        key = fingerprint[:SHORT]
        if key not in self._metas:
            self._metas[key] = record.read(self._folders[key]) if key in self._folders else {}
        return self._metas[key]

    def parameters(self, fingerprint: str) -> float | None:
        """Returns the parameter count of the model that a result was made from."""
        meta = self.meta(fingerprint)
        while meta and meta["stage"] not in SOURCES:
            inputs = meta["inputs"]
            meta = self.meta(inputs.get("model") or inputs.get("dense") or "")
        found = meta["metrics"].get("parameters") if meta else None
        return float(found) if found else None

    @cached_property
    def _folders(self) -> dict[str, Path]:
        return {path.name: path for store in (self._stores.cache, self._stores.runs) for path in store.folders()}

    def _past(self, meta: dict[str, Any]) -> Past:
        past = Past.of(
            meta, self._folders[meta["fingerprint"][:SHORT]], parameters=self.parameters(meta["fingerprint"])
        )
        # `seconds` of a resumed training lack those before the kill
        return replace(past, seconds=max(past.seconds, past.step_seconds or 0.0))


def _made_here(meta: Mapping[str, Any]) -> bool:
    return bool(meta.get("environment", {}).get("cpu") == cpu.model())
