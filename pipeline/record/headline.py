"""Summarizes a node or a job in a few numbers with the same names for every job: to compare, sort and plot by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.record.metrics import Metric, Metrics, qualities
from pipeline.record.outcome import Outcome
from stages.benchmark.backends import BACKENDS
from stages.contracts import Benchmark
from stages.contracts import Metrics as Evaluation
from stages.index import described


@dataclass(frozen=True)
class Headline:
    qualities: tuple[Metric, ...]
    """Qualities of the sparse model, or of the dense one if nothing is pruned; the most important first."""
    int8: Metric | None
    """Most important quality of the int8 model."""
    dense: Metric | None
    """The same quality of the dense model."""
    sparsity: float | None
    """Share of zeros among the prunable weights."""
    model_sparsity: float | None
    """Share of zeros among all weights."""
    speedup: Metric | None
    """Decoding speed of the sparse model over torch fp32 with the dense one, by the fastest backend that computes what
    was evaluated. Its protocol names the backend."""
    seconds: float
    """Time to make the results of all its nodes."""

    @property
    def quality(self) -> Metric | None:
        return self.qualities[0] if self.qualities else None

    @property
    def recovery(self) -> float | None:
        """Returns the percentage of the dense model's quality that remains in the most important metric."""
        return self.quality.recovery if self.quality else None

    def numbers(self) -> dict[str, float]:
        """Returns some ten numbers by their chart names. Missing ones are left out."""
        found: dict[str, float | None] = {}
        for metric in self.qualities:
            found |= {metric.name: metric.value, f"{metric.name}_stderr": metric.stderr}
        found["recovery"] = self.recovery
        found |= {f"{kind}_{it.name}": it.value for kind, it in (("int8", self.int8), ("dense", self.dense)) if it}
        found |= {"sparsity": self.sparsity, "model_sparsity": self.model_sparsity}
        found |= {"best_decode_speedup": self.speedup.value if self.speedup else None, "seconds": self.seconds or None}
        return {name: value for name, value in found.items() if value is not None}


def headline(outcomes: Mapping[str, Outcome]) -> Headline:
    """Summarizes the outcomes of a job."""
    models = {name: described(it.stage).model for name, it in outcomes.items()}
    made = [it for name, it in outcomes.items() if models[name] in ("dense", "sparse") and it.name != "one_shot"]
    is_sparse = "sparse" in models.values()
    judges = ("evaluate", "one_shot_eval" if is_sparse else "dense_eval")
    judged = next((node for node in judges if node in outcomes), "")
    ranked = _qualities(outcomes, judged)
    sparsities = [it.value("sparsity") for it in made]
    of_model = [it.value("model_sparsity") for it in made]
    return Headline(
        qualities=tuple(ranked),
        int8=_same(ranked, _qualities(outcomes, "evaluate_q")),
        dense=_same(ranked, _qualities(outcomes, "dense_eval")),
        sparsity=next((value for value in reversed(sparsities) if value is not None), None),
        model_sparsity=next((value for value in reversed(of_model) if value is not None), None),
        speedup=best_speedup(outcomes["benchmark"].metrics) if "benchmark" in outcomes else None,
        seconds=sum(it.seconds for it in outcomes.values()),
    )


def baseline_label(sparsity: float, int8: bool) -> str:
    """Returns the label of the model that pruning starts from; `sparsity` is the one it came with."""
    return (f"imported, {100 * sparsity:.0f} % sparse" if sparsity else "dense") + (", int8" if int8 else "")


def node_headline(outcome: Outcome) -> Metric | None:
    """Returns the most telling number of a node's result."""
    spec = described(outcome.stage)
    if spec.makes is Evaluation:
        return next(iter(qualities(outcome.metrics)), None)
    if spec.makes is Benchmark:
        return best_speedup(outcome.metrics)
    names = (metric.name for metric in spec.metrics if metric.headline)
    return next((outcome.metrics[name] for name in names if name in outcome.metrics), None)


def best_speedup(metrics: Metrics) -> Metric | None:
    """Returns the speed-up of decoding by the fastest backend that computes what was evaluated, with a model that is
    not dense."""
    speedups = [
        it for it in metrics.values()
        if it.protocol.get("quantity") == "decode_speedup" and it.protocol["model"] != "dense"
        and is_exact(it.protocol["backend"])
    ]  # fmt: skip
    return max(speedups, key=lambda metric: metric.value, default=None)


def is_exact(backend: str) -> bool:
    """Returns whether a backend computes what the evaluation of its checkpoint computed; False for a backend that no
    longer exists."""
    return backend in BACKENDS.names() and BACKENDS.get(backend).exact


def _qualities(outcomes: Mapping[str, Outcome], node: str) -> list[Metric]:
    return qualities(outcomes[node].metrics) if node in outcomes else []


def _same(ranked: list[Metric], other: list[Metric]) -> Metric | None:
    """Returns another model's quality in the first metric of `ranked`; if `ranked` is empty, that model's own most
    important one."""
    return next((metric for metric in other if not ranked or metric.name == ranked[0].name), None)
