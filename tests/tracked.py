"""Jobs as the pipeline tracks them, with nodes that cost nothing, and what MLflow shows of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.environment import environment
from pipeline.plan import Stores
from pipeline.record.job import Job
from pipeline.record.metrics import of_result
from pipeline.record.outcome import Outcome, Outcomes, write_outcomes
from pipeline.record.status import Status
from pipeline.schema import Tracking
from pipeline.store.store import Entry, Slot, Store
from pipeline.tracking.server import connect
from pipeline.tracking.tracker import open_tracker
from pipeline.tracking.view import View

SWEEP = "20260101-120000"
DIGEST = "ab" * 32


def tracking(**changed: Any) -> Tracking:
    return Tracking(**({"enabled": True, "uri": "", "experiment": "squarehead", "artifacts": "all"} | changed))


def make_job(runs: Path, number: int = 0, sweep: str = SWEEP, **swept_parameters: str) -> Job:
    folder = runs / "sweeps" / sweep / str(number) if sweep else runs / "jobs" / str(number)
    name = " ".join(f"{key}={value}" for key, value in swept_parameters.items()) or "defaults"
    config = {"seed": 0, "distill": {"ce": 1.0}, "cache": {"folder": str(runs / "cache")}, "data": {"path": "texts"}}
    return Job(name=name, sweep=sweep, folder=folder, config=config, swept_parameters=swept_parameters)


class Told:
    """Runs nodes as the pipeline does, with a curve, facts and a large file each."""

    def __init__(self, runs: Path, job: Job, config: Tracking | None = None) -> None:
        self.said: list[str] = []
        self.job = job
        self.store = Store(runs / "store")
        self.nodes: Outcomes = {}
        self.tracker = open_tracker(config or tracking(), job, Stores.below(runs, runs / "cache"), 1, self.said.append)

    def node(
        self, name: str, stage: str = "finetune", config: Mapping[str, Any] | None = None, card: str = "",
        model: str = "cd" * 32,
    ) -> str:  # fmt: skip
        config = {"training": {"lr": 1e-4, "betas": [0.9, 0.999]}} if config is None else config
        fingerprint = hashlib.sha256(json.dumps([stage, config]).encode()).hexdigest()
        with self.store.fill(stage, fingerprint, lambda who: None) as slot:
            if slot.entry:
                entry, status = slot.entry, Status.HIT
            else:
                run = self.tracker.start_stage(name, stage, fingerprint, config)
                curve = [{"step": step, "time": 1e9 + step, "metrics": {"loss": 3.0 - step}} for step in range(3)]
                # The first point was logged by a process that was killed; this one resumed after it.
                if card:
                    (slot.out / "README.md").write_text(card)
                for point in curve[1:]:
                    run.metrics(point["metrics"], point["step"], point["time"])
                entry, status = publish(slot, stage, fingerprint, config, curve, model), Status.DONE
        self.note(name, stage, fingerprint, status, entry.meta["metrics"])
        self.tracker.sync(self.nodes)
        return fingerprint

    def note(self, name: str, stage: str, fingerprint: str, status: Status, metrics: dict[str, float]) -> None:
        self.nodes[name] = Outcome(name, stage, fingerprint, status, 2.5, of_result(stage, metrics, None))

    def end(self) -> None:
        write_outcomes(self.nodes, self.job.folder / "summary.json")
        self.tracker.finish(self.nodes)


def publish(slot: Slot, stage: str, fingerprint: str, config: Mapping[str, Any], curve: list[Any], model: str) -> Entry:
    (slot.out / "weights").mkdir()
    (slot.out / "weights" / "model.safetensors").write_bytes(bytes(1_000_000))
    (slot.out / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in curve))
    return slot.publish(
        {
            "stage": stage,
            "version": "1",
            "fingerprint": fingerprint,
            "config": dict(config),
            "inputs": {"model": model},
            "facts": {"data_digest": DIGEST, "masks_digest": "0" * 64, "precision": "bf16", "counts": {"zeros": 3}},
            "metrics": {"loss": 1.0, "perplexity": 12.5},
            "seconds": 2.5,
            "created": datetime.now(UTC).isoformat(),
            "environment": environment(1),
            "code": "",
        }
    )


def view_of(runs: Path) -> View:
    return View(connect("", "squarehead", runs))


def only(found: list[Any]) -> Any:
    assert len(found) == 1, [run.info.run_name for run in found]
    return found[0]


def history(view: View, run: Any, name: str) -> dict[int, float]:
    return {point.step: point.value for point in view.runs.client.get_metric_history(run.info.run_id, name)}


def artifacts(view: View, run: Any, folder: str | None = None) -> set[str]:
    found = set()
    for file in view.runs.client.list_artifacts(run.info.run_id, folder):
        found |= artifacts(view, run, file.path) if file.is_dir else {file.path}
    return found
