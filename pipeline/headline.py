"""What a job comes to, in a few numbers with the same names in every job: to compare, sort and plot jobs by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Nodes = Mapping[str, Mapping[str, Any]]
"""As in summary.json."""
INT8 = "int8_"
DENSE = "dense_"


def headline(nodes: Nodes) -> dict[str, float]:
    """Quality of the sparse model under the metric's own name (`perplexity`, `_stderr`, `_recovery`), of the int8 one
    after `int8_`, of the dense one after `dense_`; `recovery` of the main metric; sparsities; decoding speed over torch
    fp32 dense by backend, and the best of them; `seconds` of all its stages. What is missing is left out."""
    found = _qualities(nodes, _judged(nodes))
    for judged, prefix in (("evaluate_q", INT8), ("dense_eval", DENSE)):
        found |= {f"{prefix}{name}": value for name, value in _qualities(nodes, judged).items()}
    if (metric := main_metric(nodes)) and f"{metric}_recovery" in found:
        found["recovery"] = found[f"{metric}_recovery"]
    for node in nodes.values():
        if node["stage"] in ("dense", "prune", "finetune") and node is not nodes.get("one_shot"):
            found |= {key: node["metrics"][key] for key in ("sparsity", "model_sparsity") if key in node["metrics"]}
    speeds = dict(_speedups(nodes.get("benchmark", {}).get("metrics", {})))
    if speeds:
        found |= {f"decode_speedup.{backend}": value for backend, value in speeds.items()}
        found["best_decode_speedup"] = max(speeds.values())
    if seconds := sum(node["seconds"] for node in nodes.values()):
        found["seconds"] = seconds
    return found


def _judged(nodes: Nodes) -> str:
    """The node that judged what the job is about: its sparse model, or the dense one where nothing was to be pruned;
    empty where there is none."""
    is_sparse = any(node["stage"] in ("prune", "finetune") for node in nodes.values())
    kinds = ("evaluate", "one_shot_eval") if is_sparse else ("evaluate", "dense_eval")
    return next((kind for kind in kinds if kind in nodes), "")


def baseline_label(sparsity: float, int8: bool) -> str:
    """What the model that pruning starts from is called; `sparsity`: that it came with."""
    return (f"imported, {100 * sparsity:.0f} % sparse" if sparsity else "dense") + (", int8" if int8 else "")


def main_metric(nodes: Nodes) -> str:
    """By which models are compared first; empty if nothing was evaluated."""
    for node in ("evaluate", "one_shot_eval", "dense_eval"):
        if metric := first_metric([name for name in nodes.get(node, {}).get("metrics", {}) if is_quality(name)]):
            return metric
    return ""


def first_metric(names: Sequence[str]) -> str:
    """Of the metrics of an evaluation the one that matters most: accuracy, or else the first; "" of none."""
    return next((name for name in names if "exact_match" in name), next(iter(names), ""))


def _qualities(nodes: Nodes, node: str) -> dict[str, float]:
    metrics = nodes.get(node, {}).get("metrics", {})
    chosen = [name for name in metrics if is_quality(name)]
    keys = [key for name in chosen for key in (name, f"{name}_stderr", f"{name}_recovery") if key in metrics]
    return {key: float(metrics[key]) for key in keys}


def _speedups(metrics: Mapping[str, float]) -> dict[str, float]:
    """By backend, of models that are not dense; by `backend.model` where a backend ran several such."""
    found = {}
    for key, value in metrics.items():
        backend, _, rest = key.partition(".")
        model, _, name = rest.partition(".")
        if name == "decode_speedup" and not model.endswith("dense"):
            found[backend, model] = value
    several = [backend for backend, _ in found]
    return {
        f"{backend}.{model}" if several.count(backend) > 1 else backend: value
        for (backend, model), value in found.items()
    }


def is_quality(metric: str) -> bool:
    """Whether a metric of an evaluation is one to compare models by; others say how it came about."""
    return not metric.endswith(("_stderr", "_recovery")) and not any(part in metric for part in _PARTS)


_PARTS = ("_substitutions", "_deletions", "_insertions")
"""Of word errors."""
