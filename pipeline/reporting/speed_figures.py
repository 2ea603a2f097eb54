"""Figures of quality over speed: every backend and model of every job, and ours beside published ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.record.headline import is_exact
from pipeline.reporting import speed_axes
from pipeline.reporting.cells import name_of, plain
from pipeline.reporting.figures import INK, MARKERS, PAPER, SOFT, WIDTH, canvas, key, legend, scale_quality, styled, svg
from pipeline.reporting.quality_figures import colors
from pipeline.reporting.speed_axes import Point
from pipeline.reporting.speed_verdicts import ENGINE
from pipeline.reporting.study import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRONT_SIZE, OTHER_SIZE = 7.0, 3.5
DENSE = "dense"
HOLLOW = "hollow: quality not measured separately"
SHAPES = {"fp32": "o", "int8": "s"}
PUBLISHED: dict[str, Any] = {"linestyle": "--", "linewidth": 0.8, "markerfacecolor": PAPER, "markersize": FRONT_SIZE}


@dataclass(frozen=True)
class Executable:
    point: Point
    series: str
    """`DENSE`, or the series of its job."""
    level: str
    dense: float
    """Quality of its job's dense model."""


def pareto(study: Study, all_named: bool = False) -> str | None:
    """Draws quality over speed. Labels the points that no other beats in both, or all. Returns SVG, or None if no job
    has both a benchmark and an evaluation of its dense model."""
    drawn = pareto_figure(study, all_named)
    if drawn is None:
        return None
    with styled():
        return svg(drawn, "Quality over decoding speed of every backend and job")


def pareto_figure(study: Study, all_named: bool) -> Figure | None:
    found = sorted(executables(study), key=lambda it: it.point.speedup)
    if not found:
        return None
    higher = study.higher_is_better(study.metric)
    points = [it.point for it in found]
    ahead = front(points, higher)
    named = found if all_named else [it for it in found if it.point in ahead]
    with styled():
        figure, (axes,) = canvas(WIDTH, 5.6)
        colored = colors(study) | {DENSE: INK}
        backends = list(dict.fromkeys(point.backend for point in points))
        shapes = {name: MARKERS[at % len(MARKERS)] for at, name in enumerate(backends)}
        for it in found:
            _mark(axes, it.point, shapes[it.point.backend], colored.get(it.series, SOFT), it in named)
        stairs = [(it.point.speedup, it.point.quality) for it in found if it.point in ahead]
        axes.step(*zip(*stairs, strict=True), where="pre", color=SOFT, linewidth=0.9)
        speed_axes.scale(axes, points)
        scale_quality(axes, study.metric, [point.quality for point in points])
        axes.axvline(1, color=SOFT, linewidth=0.8)
        axes.set_ylabel(f"{name_of(study.metric)} ± standard error")
        where = [f": batch 1, {at.threads} thread{'s' * (at.threads > 1)} of {at.cpu}" for at in study.machines]
        better = f"({'up' if higher else 'down'} and to the right is better)"
        axes.set_title(f"Quality and speed{where[0] if len(where) == 1 else ''} {better}")
        used = {it.series: colored.get(it.series, SOFT) for it in found}
        handles = _keys(used, {name.replace("_", " "): shape for name, shape in shapes.items()})
        hollow = {} if all(point.measured for point in points) else {HOLLOW: "o"}
        legend(figure, handles + _keys({}, hollow, face=PAPER))
        names = [f"{it.point.backend.replace('_', ' ')} {it.level}" for it in named]
        _write(figure, axes, [it.point for it in named], names, [used[it.series] for it in named], points)
    return figure


def beside_published(study: Study) -> str | None:
    """Draws recovery over the speed-up over the dense fp32 model in the same runtime, ours in our engine. Returns SVG,
    or None if no job names a table that has both, or none of our models was evaluated and timed."""
    published = [
        (at, Point("published", "published", at.speedup, at.speedup, at.speedup, at.recovery, None, True))
        for at in study.references
        if at.metric == study.metric and at.speedup_over == "fp32" and at.speedup and at.recovery
    ]
    if not published:
        return None
    higher = study.higher_is_better(study.metric)
    engine = (it for it in executables(study, ENGINE["fp32"]) if it.point.backend in ENGINE.values())
    found = [replace(it, point=_recovery(it, study.metric, higher)) for it in engine]
    if not found:
        return None
    points = [it.point for it in found]
    stars = [point for _, point in published]
    ahead = front(points, higher=True)
    with styled():
        figure, (axes,) = canvas(WIDTH, 4.8)
        colored = colors(study) | {DENSE: SOFT}
        shapes = {backend: SHAPES[precision] for precision, backend in ENGINE.items()}
        for it in found:
            color = colored.get(it.series, SOFT)
            speed_axes.mark(
                axes, it.point, shapes[it.point.backend], color, size=FRONT_SIZE if it.point in ahead else 4.5
            )
        lines: dict[tuple[str, str], list[Point]] = {}
        for at, point in published:
            lines.setdefault((at.ran, at.precision), []).append(point)
        for (_, precision), line in lines.items():
            places = sorted((point.speedup, point.quality) for point in line)
            axes.plot(*zip(*places, strict=True), color=INK, marker=SHAPES[precision], zorder=2.5, **PUBLISHED)
        speed_axes.scale(axes, [*points, *stars])
        axes.axhline(100, color=SOFT, linewidth=0.8)
        axes.axvline(1, color=SOFT, linewidth=0.8)
        axes.set_xlabel("decode speed over dense fp32 in the same runtime: ours in our engine, the paper's in its own")
        axes.set_ylabel(f"recovery of dense {name_of(study.metric).removesuffix(', %')}, % ± standard error")
        axes.set_title("Quality and speed beside published ones (up and to the right is better)")
        used = {it.series: colored.get(it.series, SOFT) for it in found}
        ours = {f"ours, {name}": color for name, color in used.items()}
        handles = _keys(ours, {"round: fp32": SHAPES["fp32"], "square: int8": SHAPES["int8"]})
        legend(figure, handles + [key(f"published, {precision}: {ran}", INK, marker=SHAPES[precision], **PUBLISHED)
                                  for ran, precision in lines])  # fmt: skip
        named = [it for it in found if it.point in ahead]
        names = [it.level for it in named] + [
            f"{100 * at.sparsity:g} %" if at.sparsity else DENSE for at, _ in published
        ]
        inks = [used[it.series] for it in named] + [INK] * len(published)
        _write(figure, axes, [*(it.point for it in named), *stars], names, inks, [*points, *stars])
        return svg(figure, "Recovery over decoding speed, ours and published, each over dense fp32 in its own runtime")


def executables(study: Study, base: str = "torch_fp32") -> Iterator[Executable]:
    """Yields every backend of every benchmark that ran a model of known quality, with its speed over that of the dense
    model in the backend `base`; those of the dense model once."""
    quality = {row["checkpoint"]: row for row in study.rows(study.metric) if row["kind"] != "rung"}
    rates = study.table[study.table["metric"] == "decode_tokens_per_second"]
    dense: set[str] = set()
    for _, rows in rates.groupby("fingerprint", sort=False):
        measured = rows.to_dict("records")
        over = next((row for row in measured if (row["backend"], row["kind"]) == (base, "dense")), None)
        judged = quality.get(over["checkpoint"]) if over else None
        if over is None or judged is None:
            continue
        for row in measured:
            own = quality.get(row["checkpoint"])
            if own is None or (row["kind"] == "dense" and row["backend"] in dense):
                continue
            point = Point(
                backend=row["backend"],
                model=row["kind"],
                speedup=row["value"] / over["value"],
                slowest=row["low"] / over["value"],
                fastest=row["high"] / over["value"],
                quality=plain(study.metric, own["value"]),
                stderr=None if own["stderr"] is None else plain(study.metric, own["stderr"]),
                measured=is_exact(row["backend"]),
            )
            if row["kind"] == "dense":
                dense.add(row["backend"])
                yield Executable(point, DENSE, DENSE, judged["value"])
            else:
                series = study.naming.series(own).removesuffix(" int8")
                yield Executable(point, series, f"{100 * (own['sparsity'] or 0):.3g} %", judged["value"])


def _recovery(it: Executable, metric: str, higher: bool) -> Point:
    """Returns the point with recovery, in percent, in place of its quality."""
    dense, quality = plain(metric, it.dense), it.point.quality
    recovery = 100 * (quality / dense if higher else dense / quality)
    return replace(it.point, quality=recovery, stderr=it.point.stderr and recovery * it.point.stderr / quality)


def front(points: Sequence[Point], higher: bool) -> list[Point]:
    """Returns the points that no other point beats in both quality and speed."""
    ahead: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.speedup, -p.quality if higher else p.quality)):
        gain = point.quality - ahead[-1].quality if ahead else 0.0
        if not ahead or (gain > 0 if higher else gain < 0):
            ahead.append(point)
    return ahead


def _mark(axes: Axes, point: Point, shape: str, color: str, ahead: bool) -> None:
    if ahead:
        speed_axes.mark(axes, point, shape, color, fill=PAPER, size=FRONT_SIZE)
    else:
        bare = replace(point, stderr=None, slowest=point.speedup, fastest=point.speedup)
        speed_axes.mark(axes, bare, shape, color, fill=PAPER, size=OTHER_SIZE)


def _write(
    figure: Figure, axes: Axes, points: Sequence[Point], names: Sequence[str], inks: Sequence[str],
    around: Sequence[Point],
) -> None:  # fmt: skip
    """Writes names beside their points."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # names are placed in pixels: from here on nothing may move
    speed_axes.write_names(axes, points, names, inks, around)


def _keys(series: dict[str, str], shapes: dict[str, str], face: str = SOFT) -> list[Any]:
    """Returns the handles of a legend: a colour for each series, a shape for each kind."""
    marks: dict[str, Any] = {"linestyle": "", "markerfacecolor": face}
    colored = [key(name, color, linestyle="", marker="o") for name, color in series.items()]
    return colored + [key(name, marker=shape, **marks) for name, shape in shapes.items()]
