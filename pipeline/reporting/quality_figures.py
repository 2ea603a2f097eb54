"""Plots of what the zeros cost and bring: quality over sparsity, recovery beside published ones, quality and speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from pipeline import plots
from pipeline.plots import MARKERS, Point
from pipeline.reporting.cells import name_of, plain
from pipeline.reporting.figures import COLORS, INK, PAPER, SOFT, canvas, styled, svg
from pipeline.reporting.models import ModelRow
from pipeline.reporting.study import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAR = 8.0
"""Largest over smallest value from which on an axis of values without an upper end is logarithmic."""
NARROW = 4.0
"""Percent of sparsity that an axis spans at least."""
TICKS = 10
"""Levels that have a name at the axis each."""
DODGE = 0.008
"""Between the bars of series that would cover each other, as a share of the axis."""
LONG = 34
"""Characters of a name that leave no room beside the axes."""
WIDTH = 9.4
"""Inches."""
FRONT_SIZE, OTHER_SIZE = 7.0, 3.5


@dataclass(frozen=True)
class Mark:
    """A series at one sparsity: one model, or the mean over its seeds."""

    sparsity: float
    value: float
    error: float | None
    """Standard error of one model; standard deviation over seeds."""
    each: tuple[float, ...]


def marks(study: Study, metric: str) -> dict[str, list[Mark]]:
    """By series, from the lowest sparsity on. Models in floating point; int8 is in the tables and the plot of speed."""
    found: dict[str, dict[tuple[float, str], list[ModelRow]]] = {}
    for row in study.models:
        if row.kind in ("evaluate", "one_shot_eval") and row.sparsity is not None and metric in row.qualities:
            place = round(row.sparsity, 3), study.series(row)
            found.setdefault(study.series(row), {}).setdefault(place, []).append(row)
    return {
        name: [_mark(place[0], rows, metric) for place, rows in sorted(places.items())]
        for name, places in sorted(found.items(), key=lambda it: ("one-shot" in it[0], it[0]))
    }


def _mark(sparsity: float, rows: Sequence[ModelRow], metric: str) -> Mark:
    values = tuple(plain(metric, row.qualities[metric].value) for row in rows)
    error = rows[0].qualities[metric].stderr
    error = stdev(values) if len(values) > 1 else plain(metric, error) if error is not None else None
    return Mark(sparsity, mean(values), error, values)


def colors(study: Study) -> dict[str, str]:
    """Series -> colour, the same in every plot; one-shot is grey."""
    names = dict.fromkeys(study.series(row) for row in study.models if row.kind in ("evaluate", "evaluate_q"))
    bare = dict.fromkeys(name.removesuffix(" int8") for name in names)
    found = {name: COLORS[at % len(COLORS)] for at, name in enumerate(sorted(bare))}
    return found | {f"{name} int8": color for name, color in found.items()}


def quality_over_sparsity(study: Study, metric: str) -> str | None:
    """SVG, or None where there is no sparse model."""
    series = marks(study, metric)
    if not series:
        return None
    higher = study.higher_is_better(metric)
    with styled():
        figure, (axes,) = canvas(WIDTH, 3.7)
        colored = colors(study)
        levels = sorted({100 * point.sparsity for points in series.values() for point in points})
        reach = max(levels[-1] - levels[0], NARROW)
        for at, (name, points) in enumerate(series.items()):
            color, one_shot = colored.get(name, SOFT), "one-shot" in name
            shift = DODGE * reach * (at - (len(series) - 1) / 2)
            seeds = max(len(point.each) for point in points)
            axes.errorbar(
                [100 * point.sparsity + shift for point in points],
                [point.value for point in points],
                yerr=[point.error or 0 for point in points],
                fmt=":" if one_shot else "-", marker="x" if one_shot else MARKERS[at % len(MARKERS)],
                color=color, markersize=5, linewidth=1.4, elinewidth=0.9, capsize=2,
                label=name + (f" (mean of {seeds} seeds)" if seeds > 1 else ""),
            )  # fmt: skip
            for point in points if seeds > 1 else ():
                places = [100 * point.sparsity + shift] * len(point.each)
                axes.plot(places, point.each, ".", color=color, alpha=0.45, markersize=4)
        for row in (row for row in study.models if row.kind == "dense_eval" and metric in row.qualities):
            dense = row.qualities[metric]
            value, error = plain(metric, dense.value), plain(metric, dense.stderr or 0)
            axes.axhline(value, color=INK, linewidth=1, linestyle="--", label="dense")
            axes.axhspan(value - error, value + error, color=INK, alpha=0.08, linewidth=0)
        _published_values(axes, study, metric)
        values = [point.value for points in series.values() for point in points]
        if "perplexity" in metric and max(values) > FAR * min(values):
            _logarithmic(axes)
        axes.set_xlim(levels[0] - 0.07 * reach, levels[-1] + 0.07 * reach)
        if len(levels) <= TICKS:
            axes.set_xticks(levels, [f"{level:.3g}" for level in levels])
        axes.set_xlabel("zeros among the prunable weights, %")
        spread = "standard deviation over seeds" if study.seeds else "standard error"
        axes.set_ylabel(f"{name_of(metric)} ± {spread}")
        axes.set_title(f"{name_of(metric)} over sparsity ({'higher' if higher else 'lower'} is better)")
        _legend(figure, axes)
        return svg(figure, f"{name_of(metric)} over sparsity, a line for each of: {', '.join(series)}")


def _published_values(axes: Axes, study: Study, metric: str) -> None:
    told = {(at.reference.sparsity, at.reference.value) for at in study.comparisons
            if at.metric == metric and at.same_model and at.same_data and at.reference.sparsity}  # fmt: skip
    if told:
        axes.plot(
            [100 * sparsity for sparsity, _ in told], [plain(metric, value) for _, value in told],
            "*", color=INK, markerfacecolor="none", markersize=10, label="published",
        )  # fmt: skip


def recovery_over_sparsity(study: Study) -> str | None:
    """Ours and the published ones, of whatever model; None where no job names a table that tells recoveries."""
    metric = study.metric
    told = [at for at in study.references if at.metric == metric and at.sparsity and at.loss and at.recovery]
    if not told:
        return None
    with styled():
        figure, (axes,) = canvas(WIDTH, 3.4)
        colored = colors(study)
        for name, color in colored.items():
            rows = [row for row in study.models if study.series(row) == name and row.kind == "evaluate"
                    and metric in row.qualities and row.qualities[metric].recovery and row.sparsity]  # fmt: skip
            rows.sort(key=lambda row: row.sparsity or 0)
            if rows:
                axes.plot([100 * (row.sparsity or 0) for row in rows],
                          [row.qualities[metric].recovery or 0 for row in rows],
                          "-o", color=color, markersize=5, label=f"ours, {name}")  # fmt: skip
        lines: dict[str, list[tuple[float, float]]] = {}
        for at in told:
            name = f"{at.model}, {at.loss}{', int8' if at.int8 else ''}"
            lines.setdefault(name, []).append((100 * at.sparsity, at.recovery or 0))
        for at_line, (name, line) in enumerate(lines.items()):
            axes.plot(*zip(*sorted(line), strict=True), linestyle="--", marker="*D"[at_line % 2], color=INK,
                      markerfacecolor="none", markersize=9 - 3 * (at_line % 2), linewidth=0.9,
                      label=f"published: {name}")  # fmt: skip
        axes.axhline(100, color=SOFT, linewidth=0.9)
        axes.set_xlabel("zeros among the prunable weights, %")
        axes.set_ylabel(f"recovery of dense {name_of(metric)}, %")
        axes.set_title("Recovery beside published ones")
        _legend(figure, axes)
        return svg(figure, "Recovery over sparsity, ours and published")


def pareto(study: Study) -> str | None:
    """Quality and speed of every executable of every job; those that no other beats in both have names."""
    found = _points(study)
    if not found:
        return None
    metric, higher, points, names, groups = found
    ahead = front(points, higher)
    with styled():
        figure, (axes,) = canvas(WIDTH, 5.6)
        colored = colors(study) | {"dense": INK}
        backends = list(dict.fromkeys(point.backend for point in points))
        for point, group in zip(points, groups, strict=True):
            shape = MARKERS[backends.index(point.backend) % len(MARKERS)]
            color = colored.get(group, SOFT)
            if point in ahead:
                plots.mark(axes, point, shape, color, fill=PAPER, size=FRONT_SIZE)
            else:
                bare = replace(point, stderr=None, slowest=point.speedup, fastest=point.speedup)
                plots.mark(axes, bare, shape, color, fill=PAPER, size=OTHER_SIZE)
        ordered = sorted(ahead, key=lambda point: point.speedup)
        axes.step([p.speedup for p in ordered], [p.quality for p in ordered], where="pre", color=SOFT, linewidth=0.9)
        plots.scale(axes, points)
        axes.axvline(1, color=SOFT, linewidth=0.8)
        axes.set_ylabel(f"{name_of(metric)}, ± standard error")
        axes.set_title(f"Quality and speed ({'up' if higher else 'down'} and to the right is better)")
        figure.legend(
            handles=_pareto_legend(dict(zip(groups, (colored.get(g, SOFT) for g in groups), strict=True)), backends),
            loc="outside lower center", ncols=4,
        )  # fmt: skip
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # names are placed in pixels: from here on nothing may move
        at = [points.index(point) for point in ordered]
        plots.write_names(axes, ordered, [names[i] for i in at], [colored.get(groups[i], SOFT) for i in at], points)
        return svg(figure, "Quality over decoding speed of every backend and job")


def _points(study: Study) -> tuple[str, bool, list[Point], list[str], list[str]] | None:
    """(metric, higher is better, points, their names, their series); dense ones of the first job that has them."""
    points: list[Point] = []
    names: list[str] = []
    groups: list[str] = []
    dense: set[str] = set()
    told: tuple[str, bool] | None = None
    for at, job in enumerate(study.jobs):
        nodes = {name: {"stage": node.stage, "fingerprint": node.fingerprint, "metrics": node.metrics or {"stored": 1}}
                 for name, node in job.nodes.items()}  # fmt: skip
        found = next((it for store in study.results.stores if (it := plots.collect(nodes, store, study.metric))), None)
        if found is None:
            continue
        told = told or (found.metric, found.higher_is_better)
        row = next((row for row in study.models if at in row.jobs and row.kind == "evaluate"), None)
        series = study.series(row) if row else ""
        for point in found.points:
            if point.model == "dense" and point.backend in dense:
                continue
            dense |= {point.backend} if point.model == "dense" else set()
            backend = point.backend.replace("_", " ")
            level = f" {100 * found.sparsity:.3g} %" if found.sparsity and point.model == "sparse" else " dense"
            scaled = plain(found.metric, point.quality), plain(found.metric, point.stderr or 0)
            points.append(replace(point, quality=scaled[0], stderr=scaled[1] or None))
            names.append(backend + level)
            groups.append("dense" if point.model == "dense" else series)
    return (*told, points, names, groups) if told else None


def front(points: Sequence[Point], higher: bool) -> list[Point]:
    """Those that no other point beats in both."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.speedup, -p.quality if higher else p.quality)):
        gain = point.quality - front[-1].quality if front else 0.0
        if not front or (gain > 0 if higher else gain < 0):
            front.append(point)
    return front


def _pareto_legend(series: dict[str, str], backends: Sequence[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], linestyle="", marker="o", color=color, label=name) for name, color in series.items()]
    shapes = [Line2D([], [], linestyle="", marker=MARKERS[at % len(MARKERS)], color=SOFT, label=name.replace("_", " "))
              for at, name in enumerate(backends)]  # fmt: skip
    return lines + shapes


def _legend(figure: Figure, axes: Axes) -> None:
    """Beside the axes, or below them where names are long."""
    handles, labels = axes.get_legend_handles_labels()
    kept = dict(zip(labels, handles, strict=True))  # once, though several dense models have a line
    beside = max(map(len, kept)) <= LONG
    place = {"loc": "outside right upper"} if beside else {"loc": "outside lower left", "ncols": 2}
    figure.legend(list(kept.values()), list(kept), **place)


def _logarithmic(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
