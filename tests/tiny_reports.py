"""Runs as jobs leave them, made by hand: folders of jobs and a store of small results, without running anything."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from math import log
from pathlib import Path
from typing import Any

from pipeline.record.sweep import Sweep, SweepJob, SweepNode
from pipeline.store.store import Store

BENCHMARKED = {
    # (backend, model) -> tokens/s
    ("torch_fp32", "dense"): 10.0,
    ("torch_fp32", "sparse"): 10.2,
    ("engine_fp32", "dense"): 20.0,
    ("engine_fp32", "sparse"): 30.0,
    ("engine_int8", "dense"): 40.0,
    ("engine_int8", "sparse"): 60.0,
}
ROUNDS = {"dense": (0.9, 1.0, 1.1), "sparse": (1.0, 0.9, 1.1)}
"""Of the rate, round by round: sparse over dense is from 0.9 to 1.11 of the rates' ratio."""
HARD = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""By how much the loss of each window is over the mean."""
LOSSES = {"ce": (1, 0, 0), "kd": (1, 1, 0), "squarehead": (1, 0, 1)}


def fingerprint(*identity: object) -> str:
    return hashlib.sha256(repr(identity).encode()).hexdigest()


@dataclass
class Runs:
    """A runs folder with one sweep; what jobs have in common they share, as in the pipeline."""

    folder: Path
    metric: str = "perplexity"
    higher_is_better: bool = False
    dense: float = 10.0
    one_shot: float = 90.0
    reference: str = ""
    model: str = "owner/tiny"
    data: str = "owner/texts"
    pattern: str = "unstructured"
    came_with: float = 0.0
    """Zeros of the model before any pruning."""
    windows: bool = False
    """Whether evaluations keep the losses of their windows: of every model the same ones are hard."""
    rates: dict[tuple[str, str], float] = field(default_factory=lambda: dict(BENCHMARKED))
    sweep: str = "20260101-120000-000001"
    asked: list[SweepJob] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    @property
    def place(self) -> Path:
        return self.folder / "sweeps" / self.sweep

    def job(
        self, sparsity: float, loss: str, value: float, *, seed: int = 0, error: float | None = 1.0, int8: bool = False,
        until: str = "", failed: str = "", summary: bool = True, folder: bool = True, lr: float = 1e-4, row: str = "",
    ) -> Path:  # fmt: skip
        """A job that came as far as `until` (a node; empty: to its end), or failed at the node `failed`. `row`: the
        group that sets its sparsity."""
        num = len(self.asked)
        overrides = [f"row={row}" if row else f"sparsity={sparsity}", f"distill={loss}", f"seed={seed}"]
        overrides.append(f"finetune.lr={lr}")
        planned = self._planned(sparsity, loss, value, seed, error, int8, lr)
        nodes = {name: SweepNode(it["stage"], it["fingerprint"]) for name, it in planned.items()}
        self.asked.append(SweepJob(num, " ".join(overrides), overrides, swept_parameters={}, nodes=nodes))
        place = self.place / str(num)
        if folder:
            self._leave(place, sparsity, loss, seed, lr, planned, overrides)
            became = self._make(planned, until, failed)
            if summary:
                (place / "summary.json").write_text(json.dumps(became))
        return place

    def write_sweep(self) -> None:
        Sweep(
            self.place, ["python", "-m", "pipeline", "-m", "sparsity=0.5,0.7", "distill=ce,squarehead"], cwd="/",
            started="2026-01-01T12:00:00", process="", cache="", parallel=1, continues="", jobs=self.asked,
        ).write()  # fmt: skip

    def _leave(
        self, place: Path, sparsity: float, loss: str, seed: int, lr: float, planned: dict[str, Any],
        overrides: list[str],
    ) -> None:  # fmt: skip
        (place / ".hydra").mkdir(parents=True)
        (place / ".hydra" / "overrides.yaml").write_text("".join(f"- {line}\n" for line in overrides))
        weights = dict(zip(("ce", "kd", "squarehead"), LOSSES[loss], strict=True))
        config = {
            "model": {"path": self.model}, "data": {"path": self.data}, "sparsity": sparsity, "distill": weights,
            "prune": {"method": "sparsegpt", "pattern": self.pattern}, "seed": seed, "reference": self.reference,
            "finetune": {"lr": lr},
            "tracking": {"enabled": False, "uri": "", "experiment": "squarehead", "artifacts": "all"},
        }  # fmt: skip
        swept = dict(line.split("=", 1) for line in overrides)
        record = {"name": " ".join(overrides), "sweep": self.sweep, "config": config, "swept_parameters": swept}
        (place / "job.json").write_text(json.dumps(record | {"environment": {}}))
        plan = {
            name: {"stage": it["stage"], "fingerprint": it["fingerprint"], "inputs": it["inputs"], "status": "run"}
            for name, it in planned.items()
        }
        (place / "plan.json").write_text(json.dumps({"nodes": plan}))

    def _planned(
        self, sparsity: float, loss: str, value: float, seed: int, error: float | None, int8: bool, lr: float
    ) -> dict[str, Any]:
        """{node: stage, fingerprint, inputs (by node), and what its result holds}."""
        level = f"{100 * sparsity:g}"
        masked = (sparsity, seed) if self.pattern == "unstructured" else (sparsity, seed, self.pattern)
        trained = (sparsity, loss, seed, *masked[2:]) if lr == 1e-4 else (sparsity, loss, seed, *masked[2:], lr)
        layers = [{"name": f"model.layers.{i}.fc", "sparsity": sparsity, "error": 0.01 * (i + 1)} for i in range(3)]
        curve = [{"step": step, "time": 0.0, "metrics": {"loss": 3.0 / step, "loss_ce": 2.0 / step}} for step in (1, 2)]
        curve.append({"step": 2, "time": 0.0, "metrics": {"validation_loss": 1.5}})
        zeros = {"sparsity": sparsity, "model_sparsity": sparsity / 2}
        nodes: dict[str, Any] = {
            "model": self._node("model", ("model",)),
            "data": self._node("data", ("data",)),
            "dense": self._node(
                "dense", (seed,), model="model", data="data", curve=curve, metrics={"sparsity": self.came_with},
                weights=4000,
            ),
            "dense_eval": self._judged((seed,), self.dense, error, model="dense"),
            f"prune_{level}": self._node(
                "prune", masked, model="dense", metrics=zeros, facts={"layers": layers}, weights=4000,
                config={"prune": {"pattern": self.pattern}, "sparsity": sparsity},
            ),
            f"finetune_{level}": self._node(
                "finetune", trained, model=f"prune_{level}", teacher="dense", curve=curve,
                metrics=zeros, weights=4100,
            ),
            "one_shot_eval": self._judged(masked, self.one_shot, error, model=f"prune_{level}"),
            "evaluate": self._judged(trained, value, error, model=f"finetune_{level}"),
        }  # fmt: skip
        if int8:
            nodes["quantize_dense"] = self._node(
                "quantize", (seed, "dense"), model="dense", metrics={"sparsity": self.came_with}, weights=1000
            )
            nodes["dense_eval_q"] = self._judged((seed, "int8"), 1.01 * self.dense, error, model="quantize_dense")
            nodes["quantize"] = self._node(
                "quantize", trained, model=f"finetune_{level}", metrics={"sparsity": sparsity},
                weights=1100,
            )  # fmt: skip
            nodes["evaluate_q"] = self._judged((*trained, "int8"), 1.01 * value, error, model="quantize")
            nodes["benchmark"] = self._node(
                "benchmark", trained, dense="dense", sparse=f"finetune_{level}", quantized="quantize",
                quantized_dense="quantize_dense", files={"benchmark.json": benchmark(self.rates)},
            )  # fmt: skip
        return nodes

    def _judged(self, identity: tuple[object, ...], value: float, error: float | None, model: str) -> dict[str, Any]:
        found = {"value": value, "stderr": error, "protocol": {"higher_is_better": self.higher_is_better}}
        metrics = {self.metric: value} | ({f"{self.metric}_stderr": error} if error is not None else {})
        metrics[f"{self.metric}_recovery"] = 100 * (value / self.dense if self.higher_is_better else self.dense / value)
        files: dict[str, Any] = {"metrics.json": {self.metric: found}}
        if self.windows:
            losses = [log(value) + hard for hard in HARD]
            files["windows.jsonl"] = [{"window": i, "tokens": 10, "nll": nll} for i, nll in enumerate(losses)]
        return self._node("evaluate", identity, model=model, metrics=metrics, files=files)

    @staticmethod
    def _node(stage: str, identity: tuple[object, ...], **about: Any) -> dict[str, Any]:
        own = {"files": {}, "metrics": {"value": 1.0}, "facts": {}, "config": {}, "curve": [], "weights": 0}
        inputs = {role: source for role, source in about.items() if role not in own}
        found = own | {key: value for key, value in about.items() if key in own}
        return found | {"stage": stage, "fingerprint": fingerprint(stage, *identity), "inputs": inputs}

    def _make(self, planned: dict[str, Any], until: str, failed: str) -> dict[str, Any]:
        """Publishes what is not there; the summary of the job."""
        became = {}
        stopped = False
        for name, node in planned.items():
            at = {"stage": node["stage"], "fingerprint": node["fingerprint"], "seconds": 2.0}
            if stopped or name == failed:
                status = "failed" if name == failed else "not run"
                became[name] = at | {"status": status, "metrics": {}, "error": "out of luck" if name == failed else ""}
                stopped = True
                continue
            there = self.store.find(node["stage"], node["fingerprint"]) is not None
            if not there:
                self._publish(node, {role: planned[it]["fingerprint"] for role, it in node["inputs"].items()})
            status = "hit" if there else "done"
            became[name] = at | {"status": status, "metrics": node["metrics"], "error": ""}
            stopped = name == until
        return became

    def _publish(self, node: dict[str, Any], inputs: dict[str, str]) -> None:
        with self.store.fill(node["stage"], node["fingerprint"], lambda who: None) as slot:
            curve = {"metrics.jsonl": node["curve"]} if node["curve"] else {}
            for name, content in (node["files"] | curve).items():
                rows = [json.dumps(row) + "\n" for row in content] if name.endswith(".jsonl") else [json.dumps(content)]
                (slot.out / name).write_text("".join(rows))
            if node["weights"]:
                (slot.out / "model.safetensors").write_bytes(bytes(node["weights"]))
            environment = {"cpu": "A CPU", "cores": 2, "threads": 1, "python": "3.11", "packages": {}, "git": "c0ffee"}
            slot.publish(
                {key: node[key] for key in ("stage", "fingerprint", "metrics", "facts", "config")}
                | {"inputs": inputs, "seconds": 2.0, "created": "2026-01-01T12:00:00+00:00"}
                | {"environment": environment}
            )


def benchmark(rates: dict[tuple[str, str], float]) -> dict[str, Any]:
    base = rates["torch_fp32", "dense"]
    rows = [
        {
            "backend": backend, "model": model, "status": "ok", "note": None, "prefill_ms": 5.0, "weight_bytes": 2e6,
            "decode_tokens_per_second": rate, "decode_tokens_per_second_min": 0.9 * rate,
            "decode_tokens_per_second_max": 1.1 * rate,
            "decode_tokens_per_second_rounds": [share * rate for share in ROUNDS[model]],
            "decode_speedup": {
                "torch_fp32_dense": rate / base, "same_backend_dense": rate / rates[backend, "dense"]
            },
        }
        for (backend, model), rate in rates.items()
    ]  # fmt: skip
    rows.append({"backend": "onnx_fp32", "model": "dense", "status": "n/a", "reason": "not installed"})
    return {"machine": {"cpu": "A CPU", "threads": 2}, "protocol": {"workload": "a prompt", "rounds": 3}, "rows": rows}


def forget_evaluations(job: Path) -> None:
    """Takes the evaluations out of a job's records, as of a job that measured speed alone."""
    for name in ("plan.json", "summary.json"):
        record = json.loads((job / name).read_text())
        nodes = record.get("nodes", record)
        for node in [node for node in nodes if nodes[node]["stage"] == "evaluate"]:
            del nodes[node]
        (job / name).write_text(json.dumps(record))
