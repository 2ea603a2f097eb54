"""The quality-speed plot of a job: what each backend gains in speed, and what the model it runs is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.record.outcome import Outcome
from pipeline.record.status import Status
from pipeline.reporting.figures import MARKERS, scale_quality
from pipeline.reporting.speed_axes import FONT, Point, mark, scale, write_names
from pipeline.reporting.speeds import EXACT, INT8
from pipeline.store.store import Store
from stages.contracts import Artifact, Benchmark, Metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

A = TypeVar("A", bound=Artifact)

NAME = "quality_speed.svg"
JUDGES = {
    ("dense", False): "dense_eval",
    ("dense", True): "dense_eval_q",
    ("sparse", False): "evaluate",
    ("sparse", True): "evaluate_q",
}
"""(model, int8) -> node that measured its quality."""
COLORS = {"dense": "#4269a5", "sparse": "#d0571c"}
SIZE_INCHES = (9.0, 5.6)


@dataclass(frozen=True)
class QualitySpeed:
    points: list[Point]
    metric: str
    higher_is_better: bool
    machine: str
    sparsity: float | None
    """Of the sparse model."""


def quality_speed(nodes: Mapping[str, Outcome], store: Store, folder: Path) -> Path | None:
    """Draws a job's plot into `folder` from its outcomes and their results. None, and no file, where the job has no
    benchmark over torch_fp32 of the dense model, or no quality of it."""
    found = collect(nodes, store)
    if found is None:
        return None
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": NAME}):  # and no date: the same numbers give the same file
        draw(found).savefig(folder / NAME, metadata={"Date": None})
    return folder / NAME


def collect(nodes: Mapping[str, Outcome], store: Store, metric: str = "") -> QualitySpeed | None:
    """What there is to draw; by `metric`, or else by perplexity or what was measured first."""
    judged = {name: _metrics(nodes, name, store) for name in JUDGES.values()}
    benchmark = _find(nodes, "benchmark", store, Benchmark)
    if benchmark is None or not judged["dense_eval"]:
        return None
    if metric not in judged["dense_eval"]:
        metric = "perplexity" if "perplexity" in judged["dense_eval"] else next(iter(judged["dense_eval"]))
    points = [
        point
        for row in benchmark.rows()
        if row["status"] == "ok" and (point := _point(row, {n: m[metric] for n, m in judged.items() if metric in m}))
    ]
    if not points:
        return None
    machine = json.loads((benchmark.path / "benchmark.json").read_text(encoding="utf-8"))["machine"]
    zeros = [node.metrics["sparsity"].value for node in nodes.values() if node.stage in ("prune", "finetune")
             and "sparsity" in node.metrics]  # fmt: skip
    return QualitySpeed(
        points,
        metric,
        higher_is_better=judged["dense_eval"][metric]["protocol"].get("higher_is_better") is not False,
        machine=f"batch 1, {machine['threads']} thread{'s' * (machine['threads'] > 1)} of {machine['cpu']}",
        sparsity=max(zeros, default=None),
    )


def _point(row: Mapping[str, Any], judged: Mapping[str, Mapping[str, Any]]) -> Point | None:
    speedup = row["decode_speedup"]["torch_fp32_dense"]
    int8 = row["backend"] in INT8
    quality = judged.get(JUDGES[row["model"], int8])
    if speedup is None or quality is None:
        return None
    over = speedup / row["decode_tokens_per_second"]
    return Point(
        backend=row["backend"],
        model=row["model"],
        speedup=speedup,
        slowest=over * row["decode_tokens_per_second_min"],
        fastest=over * row["decode_tokens_per_second_max"],
        quality=quality["value"],
        stderr=quality["stderr"],
        measured=row["backend"] in EXACT,
    )


def _metrics(nodes: Mapping[str, Outcome], name: str, store: Store) -> dict[str, Any]:
    found = _find(nodes, name, store, Metrics)
    return found.values() if found else {}


def _find(nodes: Mapping[str, Outcome], name: str, store: Store, kind: type[A]) -> A | None:
    node = nodes.get(name)
    entry = store.find(node.stage, node.fingerprint) if node and node.status != Status.FAILED else None
    return entry.artifact(kind) if entry and not store.corruption(entry) else None


# ---- drawing ----


def draw(found: QualitySpeed) -> Figure:
    """A marker for each point, its shape the backend's, its colour the model's, hollow where its quality was not
    measured; bars are the standard error and the range of the rounds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shapes = {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(dict.fromkeys(p.backend for p in found.points))}
    for point in found.points:
        mark(axes, point, shapes[point.backend], COLORS[point.model])
    scale(axes, found.points)
    scale_quality(axes, found.metric, [point.quality for point in found.points])
    _frame(axes, found)
    figure.legend(handles=_legend(found), loc="outside lower center", ncols=3, frameon=False, fontsize=FONT)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # names are placed in pixels: from here on nothing may move
    names = [point.backend.replace("_", " ") for point in found.points]
    write_names(axes, found.points, names, [COLORS[point.model] for point in found.points], found.points)
    return figure


def _frame(axes: Axes, found: QualitySpeed) -> None:
    axes.axvline(1, color="0.75", linewidth=0.8, zorder=1)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    better = "higher" if found.higher_is_better else "lower"
    axes.set_ylabel(f"{found.metric.replace('_', ' ')}, ± standard error ({better} is better)")
    axes.set_title(f"Quality and speed: {found.machine}", fontsize=10, loc="left")


def _legend(found: QualitySpeed) -> list[Any]:
    from matplotlib.lines import Line2D

    def dot(color: str, filled: bool, label: str) -> Line2D:
        face = color if filled else "white"
        return Line2D([], [], linestyle="", marker="o", color=color, markerfacecolor=face, label=label)

    names = {"dense": "dense model", "sparse": f"sparse model ({found.sparsity or 0:.0%} zeros)"}
    handles = [dot(COLORS[m], True, names[m]) for m in names if any(p.model == m for p in found.points)]
    if any(not point.measured for point in found.points):
        handles.append(dot("0.4", False, "hollow: not measured, drawn at the quality of the checkpoint it rounds"))
    return handles
