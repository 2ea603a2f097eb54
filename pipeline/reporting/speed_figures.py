"""The plot of quality and speed: every executable of every job, and published ones. What no other beats has a name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.references import Reference
from pipeline.reporting import plots
from pipeline.reporting.cells import name_of, plain
from pipeline.reporting.figures import INK, PAPER, SOFT, WIDTH, canvas, styled, svg
from pipeline.reporting.plots import MARKERS, Point
from pipeline.reporting.quality_figures import colors
from pipeline.reporting.study import Study
from pipeline.reporting.verdicts import same

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FRONT_SIZE, OTHER_SIZE = 7.0, 3.5
DENSE = "dense"


@dataclass(frozen=True)
class Executable:
    point: Point
    series: str
    """`DENSE`, or the one of its job."""
    name: str


def pareto(study: Study) -> str | None:
    """SVG, or None where no job has both a benchmark and an evaluation of its dense model.

    Where published figures are of another model, quality is told as recovery: only that can stand in one plot.
    """
    published = [at for at in study.references if at.metric == study.metric and at.speedup]
    relative = any(same(job, at) != (True, True) for job in study.jobs[:1] for at in published)
    found = list(_executables(study, relative))
    if not found:
        return None
    higher = relative or study.higher_is_better(study.metric)
    points = [executable.point for executable in found]
    ahead = front(points, higher)
    with styled():
        figure, (axes,) = canvas(WIDTH, 5.6)
        colored = colors(study) | {DENSE: INK}
        backends = list(dict.fromkeys(point.backend for point in points))
        shapes = {name: MARKERS[at % len(MARKERS)] for at, name in enumerate(backends)}
        for it in found:
            _mark(axes, it.point, shapes[it.point.backend], colored.get(it.series, SOFT), it.point in ahead)
        ordered = sorted((it for it in found if it.point in ahead), key=lambda it: it.point.speedup)
        stairs = [(it.point.speedup, it.point.quality) for it in ordered]
        axes.step(*zip(*stairs, strict=True), where="pre", color=SOFT, linewidth=0.9)
        stars = _published(axes, study.metric, published, relative)
        plots.scale(axes, [*points, *stars])
        axes.axvline(1, color=SOFT, linewidth=0.8)
        what = (
            f"recovery of dense {name_of(study.metric).removesuffix(', %')}, %" if relative else name_of(study.metric)
        )
        axes.set_ylabel(f"{what} ± standard error")
        axes.set_title(f"Quality and speed ({'up' if higher else 'down'} and to the right is better)")
        used = {it.series: colored.get(it.series, SOFT) for it in found}
        handles = [*_legend(used, shapes), *_stars(published)]
        figure.legend(handles=handles, loc="outside lower left", ncols=4 if max(map(len, used)) < 24 else 2)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # names are placed in pixels: from here on nothing may move
        named = [it.point for it in ordered]
        inks = [colored.get(it.series, SOFT) for it in ordered]
        plots.write_names(axes, named, [it.name for it in ordered], inks, [*points, *stars])
        return svg(figure, "Quality over decoding speed of every backend and job")


def _executables(study: Study, relative: bool) -> Iterator[Executable]:
    """Those of the dense model once, of the first job that has them."""
    dense: set[str] = set()
    for at, job in enumerate(study.jobs):
        nodes = {
            # what a job has not told (yet) may be stored
            name: {"stage": node.stage, "fingerprint": node.fingerprint, "metrics": node.metrics or {"stored": 1.0}}
            for name, node in job.nodes.items()
        }
        found = next((it for store in study.results.stores if (it := plots.collect(nodes, store, study.metric))), None)
        if found is None or found.metric != study.metric:
            continue
        row = next((row for row in study.models if at in row.jobs and row.kind == "evaluate"), None)
        base = next((row for row in study.models if at in row.jobs and row.kind == "dense_eval"), None)
        for point in found.points:
            backend = point.backend.replace("_", " ")
            shown = _scaled(point, study.metric, base.qualities[study.metric].value if relative and base else None,
                            found.higher_is_better)  # fmt: skip
            if point.model == "sparse":
                level = f"{100 * (found.sparsity or 0):.3g} %"
                yield Executable(shown, study.series(row) if row else "", f"{backend} {level}")
            elif point.backend not in dense:
                dense.add(point.backend)
                yield Executable(shown, DENSE, f"{backend} dense")


def _scaled(point: Point, metric: str, dense: float | None, higher: bool) -> Point:
    """In the unit it is told in; with `dense`, as recovery."""
    if dense is None:
        error = plain(metric, point.stderr) if point.stderr is not None else None
        return replace(point, quality=plain(metric, point.quality), stderr=error)
    recovery = 100 * (point.quality / dense if higher else dense / point.quality)
    return replace(point, quality=recovery, stderr=point.stderr and recovery * point.stderr / point.quality)


def front(points: Sequence[Point], higher: bool) -> list[Point]:
    """Those that no other point beats in both."""
    ahead: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.speedup, -p.quality if higher else p.quality)):
        gain = point.quality - ahead[-1].quality if ahead else 0.0
        if not ahead or (gain > 0 if higher else gain < 0):
            ahead.append(point)
    return ahead


def _mark(axes: Axes, point: Point, shape: str, color: str, ahead: bool) -> None:
    if ahead:
        plots.mark(axes, point, shape, color, fill=PAPER, size=FRONT_SIZE)
    else:
        bare = replace(point, stderr=None, slowest=point.speedup, fastest=point.speedup)
        plots.mark(axes, bare, shape, color, fill=PAPER, size=OTHER_SIZE)


def _published(axes: Axes, metric: str, references: Sequence[Reference], relative: bool) -> list[Point]:
    """Draws them, and returns where."""
    points = []
    for at in references:
        quality = at.recovery if relative else plain(metric, at.value)
        if quality is not None and at.speedup:
            points.append(Point("published", "published", at.speedup, at.speedup, at.speedup, quality, None, True))
            axes.plot(at.speedup, quality, "*", color=INK, markerfacecolor=PAPER, markersize=9)
            level = f"{100 * at.sparsity:.3g} %{' int8' * at.int8}" if at.sparsity else f"dense{' int8' * at.int8}"
            axes.annotate(level, (at.speedup, quality), xytext=(0, -11), textcoords="offset points", ha="center",
                          fontsize=7, color=SOFT)  # fmt: skip
    return points


def _stars(references: Sequence[Reference]) -> list[Any]:
    from matplotlib.lines import Line2D

    told = dict.fromkeys(f"published: {at.model}, over a baseline of its own" for at in references)
    style = {"linestyle": "", "marker": "*", "color": INK, "markerfacecolor": PAPER, "markersize": 9}
    return [Line2D([], [], label=label, **style) for label in told]  # type: ignore[arg-type]


def _legend(series: dict[str, str], shapes: dict[str, str]) -> list[Any]:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], linestyle="", marker="o", color=color, label=name) for name, color in series.items()]
    return lines + [
        Line2D([], [], linestyle="", marker=shape, color=SOFT, label=name.replace("_", " "))
        for name, shape in shapes.items()
    ]
