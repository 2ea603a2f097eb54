"""Reads the stored results of jobs, once each. Results that a job had and the store has not are remembered as lost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.record.folders import JobRecord, Node, runs_of
from pipeline.record.metrics import flat
from pipeline.record.result import Result
from pipeline.store import record
from pipeline.store.store import SHORT, Store
from stages.contracts import UserError
from stages.index import described

FIGURES = (".json", ".jsonl")
"""Suffixes of the files that reports read: their digests are compared first."""


class Results:
    """Results of all jobs of a report. Reads stores, never writes them."""

    def __init__(self, jobs: Sequence[JobRecord], runs: Path | None, otherwise: Path) -> None:
        """Reads all results. `runs` is the folder that holds the store; None means the nearest one above each job."""
        self.stores: list[Store] = []
        self._found: dict[str, Result] = {}
        self.lost: dict[tuple[str, str], str] = {}
        """(stage, fingerprint) -> what is wrong with a result that some job had."""
        for job in jobs:
            self._add(Store((runs or runs_of(job.folder, otherwise)) / "store"))
            if cache := job.config.get("cache", {}).get("folder"):
                self._add(Store(Path(cache) / "store"))
        for job in jobs:
            for node in job.nodes.values():
                self.of(node)
        self.working = {name for store in self.stores for name in _working(store)}
        """`<stage>-<first digits of the fingerprint>` of what processes are making now."""

    def of(self, node: Node) -> Result | None:
        """Returns the result of a node; None if there is none (yet)."""
        if node.fingerprint not in self._found and (found := self._read(node)):
            self._found[node.fingerprint] = found
        return self._found.get(node.fingerprint)

    def by_fingerprint(self, fingerprint: str) -> Result | None:
        """Returns a result that was read before."""
        return self._found.get(fingerprint)

    def all(self) -> list[Result]:
        return list(self._found.values())

    def is_working(self, node: Node) -> bool:
        return f"{node.stage}-{node.fingerprint[:SHORT]}" in self.working

    def ancestors(self, fingerprint: str) -> list[Result]:
        """Returns a result and everything it was made from, as far as it was read."""
        seen: dict[str, Result] = {}
        waiting = [fingerprint]
        while waiting:
            found = self.by_fingerprint(waiting.pop())
            if found and found.fingerprint not in seen:
                seen[found.fingerprint] = found
                waiting += found.inputs.values()
        return list(seen.values())

    def zeros(self, checkpoint: Result | None) -> tuple[float | None, float | None]:
        """Returns the share of zeros among the prunable weights and in the whole model; for an int8 checkpoint, those
        of its model."""
        if checkpoint is None:
            return None, None
        if described(checkpoint.stage).is_source:
            return checkpoint.metrics.get("sparsity", 0.0), checkpoint.metrics.get("model_sparsity", 0.0)
        whole = checkpoint.metrics.get("model_sparsity")
        if whole is None and (under := self.by_fingerprint(checkpoint.inputs.get("model", ""))):
            whole = self.zeros(under)[1]
        return checkpoint.metrics.get("sparsity"), whole

    def _add(self, store: Store) -> None:
        if all(known.root.resolve() != store.root.resolve() for known in self.stores):
            self.stores.append(store)

    def _read(self, node: Node) -> Result | None:
        damage = ""
        for store in self.stores:
            try:
                entry = store.find(node.stage, node.fingerprint)
                damage = damage or store.damage(node.stage, node.fingerprint)
            except UserError as error:  # another result has its folder
                damage = str(error)
                continue
            try:
                if entry and (wrong := record.check_contents(entry.path, FIGURES)):
                    damage = wrong
                elif entry:
                    return Result.of(entry.meta, entry.path)
            except OSError:  # deleted between the two reads
                continue
        if not node.status.is_stored and not damage:
            return None
        # sources may be cleared from the user's cache, and are fetched again
        if not described(node.stage).in_cache:
            self.lost[node.stage, node.fingerprint] = damage or "not in the store any more"
        return Result(node.stage, node.fingerprint, node.inputs or {}, flat(node.metrics), node.seconds)


def _working(store: Store) -> set[str]:
    there = {path.name for path in store.root.glob(".scratch/*")}
    return there - {path.name for path in store.scratch()} if there else set()
