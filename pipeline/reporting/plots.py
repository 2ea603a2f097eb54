"""The quality-speed plot of a job: what each backend gains in speed, and what the model it runs is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.contracts import Artifact, Benchmark, Metrics
from pipeline.reporting import plot_labels
from pipeline.reporting.plot_labels import Box
from pipeline.store.store import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

A = TypeVar("A", bound=Artifact)

NAME = "quality_speed.svg"
INT8 = ("squarehead_w8a8", "engine_int8", "engine_int8_head")
"""Backends that run the int8 checkpoint; the others make what they need of the one in floating point."""
EXACT = (
    *("torch_fp32", "torch_csr", "engine_fp32", "onnxruntime_fp32", "deepsparse_fp32"),
    *("squarehead_w8a8", "engine_int8"),
)
"""Backends that compute what the evaluation of their checkpoint computed; others round further."""
JUDGES = {
    ("dense", False): "dense_eval",
    ("dense", True): "dense_eval_q",
    ("sparse", False): "evaluate",
    ("sparse", True): "evaluate_q",
}
"""(model, int8) -> node that measured its quality."""
COLORS = {"dense": "#4269a5", "sparse": "#d0571c"}
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p", "h", "<", ">", "*", "8", "d", "H")
WIDE = 3.0
"""Largest over smallest speed-up from which on the axis is logarithmic."""
FAR = 3.0
"""Largest over smallest perplexity from which on their axis is logarithmic."""
SIZE_INCHES = (9.0, 5.6)
FONT = 8


@dataclass(frozen=True)
class Point:
    """A row of the benchmark and the quality of the model it ran."""

    backend: str
    model: str
    speedup: float
    """Of decoding, over torch_fp32 of the dense model; median of the rounds."""
    slowest: float
    fastest: float
    """The same of the slowest and the fastest round."""
    quality: float
    stderr: float | None
    measured: bool
    """Whether the quality is that of this executable, not only that of the checkpoint it was made from."""


@dataclass(frozen=True)
class QualitySpeed:
    points: list[Point]
    metric: str
    higher_is_better: bool
    machine: str
    sparsity: float | None
    """Of the sparse model."""


def quality_speed(nodes: Mapping[str, Mapping[str, Any]], store: Store, folder: Path) -> Path | None:
    """Draws a job's plot into `folder` from its summary and its results. None, and no file, where the job has no
    benchmark over torch_fp32 of the dense model, or no quality of it."""
    found = collect(nodes, store)
    if found is None:
        return None
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": NAME}):  # and no date: the same numbers give the same file
        draw(found).savefig(folder / NAME, metadata={"Date": None})
    return folder / NAME


def collect(nodes: Mapping[str, Mapping[str, Any]], store: Store, metric: str = "") -> QualitySpeed | None:
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
    zeros = [node["metrics"]["sparsity"] for node in nodes.values() if node["stage"] in ("prune", "finetune")
             and "sparsity" in node["metrics"]]  # fmt: skip
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


def _metrics(nodes: Mapping[str, Mapping[str, Any]], name: str, store: Store) -> dict[str, Any]:
    found = _find(nodes, name, store, Metrics)
    return found.values() if found else {}


def _find(nodes: Mapping[str, Mapping[str, Any]], name: str, store: Store, kind: type[A]) -> A | None:
    node = nodes.get(name)
    entry = store.find(node["stage"], node["fingerprint"]) if node and node["metrics"] else None
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


def mark(axes: Axes, point: Point, shape: str, color: str, fill: str = "white", size: float = 7) -> None:
    """A point and its bars; `fill`: of what was not measured."""
    bars = axes.errorbar(
        point.speedup,
        point.quality,
        xerr=[[max(point.speedup - point.slowest, 0)], [max(point.fastest - point.speedup, 0)]],  # one ulp under
        yerr=point.stderr,
        fmt=shape,
        color=color,
        markersize=size,
        markerfacecolor=color if point.measured else fill,
        elinewidth=0.8,
        zorder=3,
        label=f"{point.backend} {point.model}",
    )
    for bar in bars[2]:
        bar.set_alpha(0.35)


def scale(axes: Axes, points: Sequence[Point]) -> None:
    """The axis of speed-ups, logarithmic where they are far apart."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = min(p.slowest for p in points), max(p.fastest for p in points)
    if high > WIDE * low:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.25, high * 1.25)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.margins(x=0.15)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}×"))
    axes.margins(y=0.3)
    axes.set_xlabel("decode speed over torch fp32 of the dense model")


def scale_quality(axes: Axes, metric: str, values: Sequence[float]) -> None:
    """The axis of a perplexity, logarithmic where they are far apart."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if "perplexity" not in metric or max(values) <= FAR * min(values):
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


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


def write_names(
    axes: Axes, points: Sequence[Point], names: Sequence[str], colors: Sequence[str], around: Sequence[Point]
) -> None:
    """Each point's name near its marker, clear of other names, and of the markers and bars of all points `around`."""

    def pixels(x: float, y: float) -> tuple[float, float]:
        at = axes.transData.transform((x, y))
        return float(at[0]), float(at[1])

    axes.autoscale(False)  # lines to the names are no data
    labels = [axes.text(0, 0, name, fontsize=FONT, color=color) for name, color in zip(names, colors, strict=True)]
    extents = [label.get_window_extent() for label in labels]
    obstacles = []
    for point in around:
        error = point.stderr or 0.0
        x, y = pixels(point.speedup, point.quality)
        obstacles.append(Box(x - 6, y - 6, x + 6, y + 6))
        obstacles.append(
            Box(pixels(point.slowest, point.quality)[0], y - 2, pixels(point.fastest, point.quality)[0], y + 2)
        )
        obstacles.append(
            Box(
                x - 2,
                pixels(point.speedup, point.quality - error)[1],
                x + 2,
                pixels(point.speedup, point.quality + error)[1],
            )
        )
    markers = [pixels(point.speedup, point.quality) for point in points]
    sizes = [(extent.width + 4, extent.height + 3) for extent in extents]
    anchors = plot_labels.place(markers, sizes, obstacles, Box(*axes.get_window_extent().extents), nearest=11)
    to_data = axes.transData.inverted()
    for label, marker, anchor, size in zip(labels, markers, anchors, sizes, strict=True):
        box = plot_labels.box_at(anchor, marker, size)
        x, y = to_data.transform(((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2))
        label.set(position=(x, y), ha="center", va="center")
        ends = to_data.transform([marker, anchor])
        axes.plot(ends[:, 0], ends[:, 1], color=label.get_color(), linewidth=0.6, alpha=0.8, zorder=2, label="_line")
