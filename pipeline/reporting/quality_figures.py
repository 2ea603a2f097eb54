"""Figures of quality over sparsity (or another option), and of recovery beside published figures."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING

from pipeline.reporting.analysis import Level
from pipeline.reporting.cells import name_of, plain
from pipeline.reporting.figures import (
    COLORS,
    INK,
    MARKERS,
    PAPER,
    SOFT,
    WIDTH,
    canvas,
    drawn_in,
    legend,
    scale_quality,
    styled,
    svg,
)
from pipeline.reporting.pairs import Interval, interval
from pipeline.reporting.study import Study
from pipeline.reporting.table import FINETUNED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ZEROS = "sparsity of the prunable weights, %"
MIN_SPAN = 4.0
"""Smallest range of an axis of sparsity, in percent."""
MAX_TICKS = 10
"""Largest number of levels that each have a label at the axis."""
BASELINE = "ce"
"""The series that differences are taken to, if there is one."""
Gains = dict[str, list[tuple[float, Interval]]]
"""Series -> (place, difference)."""
DODGE = 0.008
"""Offset between the bars of series that would cover each other, as a share of the axis."""


def colors(study: Study) -> dict[str, str]:
    """Returns the colour of each series, the same in every figure; one-shot has none."""
    names = {study.naming.series(row).removesuffix(" int8") for row in study.models if row["kind"] in FINETUNED}
    found = {name: COLORS[at % len(COLORS)] for at, name in enumerate(sorted(names))}
    return found | {f"{name} int8": color for name, color in found.items()}


def quality(study: Study, metric: str) -> str | None:
    """Draws quality over sparsity, or over another number if that is the same. Returns SVG, or None if there is no
    sparse model."""
    lines = _by_series(study.levels(metric))
    places = sorted({level.place for line in lines.values() for level in line if not isnan(level.place)})
    if not places:
        return None
    over_sparsity = study.naming.axis == "sparsity"
    what = "sparsity" if over_sparsity else study.naming.axis
    with styled():
        base, gains = _gains(study, metric, lines)
        if gains:
            figure, (axes, below) = canvas(WIDTH, 5.6, 2, 1, sharex=True, height_ratios=[3, 2])
        else:
            figure, (axes,) = canvas(WIDTH, 3.7)
        reach = max(places[-1] - places[0], MIN_SPAN) if over_sparsity else 0.0
        colored = colors(study)
        for at, (name, line) in enumerate(lines.items()):
            shift = DODGE * reach * (at - (len(lines) - 1) / 2)
            _draw(axes, metric, name, line, shift, colored.get(name, SOFT), MARKERS[at % len(MARKERS)])
        values = [level.value for line in lines.values() for level in line]
        for dense in study.dense(metric):
            value, error = plain(metric, dense["value"]), plain(metric, dense["stderr"] or 0)
            axes.axhline(value, color=INK, linewidth=1, linestyle="--", label=dense["label"])
            axes.axhspan(value - error, value + error, color=INK, alpha=0.05, linewidth=0)
            values.append(dense["value"])
        scale_quality(axes, metric, values)
        if over_sparsity:
            _published_values(axes, study, metric, colored)
            axes.set_xlim(places[0] - 0.07 * reach, places[-1] + 0.07 * reach)
        elif places[0] > 0 and places[-1] >= 4 * places[0]:
            axes.set_xscale("log")
        if gains:
            _draw_gains(below, metric, base, gains, reach, colored)
        _place_axis(below if gains else axes, places, ZEROS if over_sparsity else what)
        seeds = any(len(level.each) > 1 for line in lines.values() for level in line)
        spread = "standard error; over seeds, standard deviation" if seeds else "standard error"
        axes.set_ylabel(name_of(metric))
        better = "higher" if study.higher_is_better(metric) else "lower"
        axes.set_title(f"{name_of(metric)} over {what} ({better} is better; bars: {spread})")
        legend(figure, drawn_in(axes))
        return svg(figure, f"{name_of(metric)} over {what}, a line for each of: {', '.join(lines)}")


def _draw(axes: Axes, metric: str, name: str, line: list[Level], shift: float, color: str, marker: str) -> None:
    seeds = max(len(level.each) for level in line)
    if any(isnan(level.place) for level in line):  # these models do not depend on the option at the axis
        for level in line:
            axes.axhline(plain(metric, level.value), color=color, linestyle=":", linewidth=1.2, label=name)
        return
    axes.errorbar(
        [level.place + shift for level in line],
        [plain(metric, level.value) for level in line],
        yerr=[plain(metric, level.error or 0) for level in line],
        fmt=":" if line[0].one_shot else "-", marker="x" if line[0].one_shot else marker, color=color,
        markersize=5, linewidth=1.4, elinewidth=0.9, capsize=2,
        label=name + (f" (up to {seeds} seeds)" if seeds > 1 else ""),
    )  # fmt: skip
    for level in line:
        if len(level.each) > 1:
            values = [plain(metric, value) for value in level.each]
            axes.plot([level.place + shift] * len(values), values, ".", color=color, alpha=0.5, markersize=4)


def _gains(study: Study, metric: str, lines: dict[str, list[Level]]) -> tuple[str, Gains]:
    """Returns the series that others are compared with, and their differences to it by series."""
    tuned = {name: line for name, line in lines.items() if not line[0].one_shot}
    base = BASELINE if BASELINE in tuned else next(iter(tuned), "")
    gains: Gains = {}
    for name, line in tuned.items():
        for level in line if name != base else ():
            rival = next((it for it in tuned[base] if (it.place, it.sparsity) == (level.place, level.sparsity)), None)
            if rival and (found := interval(study.results, rival, level, metric)):
                gains.setdefault(name, []).append((level.place, found))
    return base, gains


def _draw_gains(
    axes: Axes, metric: str, base: str, gains: Gains, reach: float, colored: dict[str, str]
) -> None:  # fmt: skip
    axes.axhline(0, color=SOFT, linewidth=0.9)
    for at, (name, found) in enumerate(gains.items()):
        shift = 2 * DODGE * reach * (at - (len(gains) - 1) / 2)
        values, lows, highs = ([plain(metric, getattr(it, end)) for _, it in found] for end in ("value", "low", "high"))
        bars = [[v - low for v, low in zip(values, lows, strict=True)],
                [high - v for v, high in zip(values, highs, strict=True)]]  # fmt: skip
        axes.errorbar([place + shift for place, _ in found], values, yerr=bars, fmt="o", color=colored.get(name, SOFT),
                      markersize=4, elinewidth=1.2, capsize=3)  # fmt: skip
    axes.set_ylabel("difference")
    axes.set_title(f"Difference to {base}, with its 95 % interval")


def _published_values(axes: Axes, study: Study, metric: str, colored: dict[str, str]) -> None:
    """Draws published values of our model on our data, in floating point, in the colour of the series named after their
    loss."""
    published = sorted({
        (at.reference.loss or "one-shot", at.reference.sparsity, at.reference.value)
        for at in study.comparisons
        if at.reference.metric == metric and at.same_model and at.same_data
        if at.reference.sparsity and not at.reference.int8
    })  # fmt: skip
    for loss in sorted({loss for loss, _, _ in published}):
        places = [(100 * sparsity, plain(metric, value)) for name, sparsity, value in published if name == loss]
        axes.plot(*zip(*places, strict=True), linestyle="", marker="*", color=colored.get(loss, SOFT),
                  markerfacecolor=PAPER, markersize=10, label=f"published, {loss}")  # fmt: skip


def recovery_over_sparsity(study: Study) -> str | None:
    """Draws our recoveries and published ones, of whatever model. Returns SVG, or None if no job names a table with
    recoveries."""
    metric = study.metric
    published = [at for at in study.references if at.metric == metric and at.sparsity and at.loss and at.recovery]
    ours = [level for level in study.levels(metric) if not level.one_shot and level.recovery is not None]
    if not published or not ours or study.naming.axis != "sparsity":
        return None
    with styled():
        figure, (axes,) = canvas(WIDTH, 3.6)
        colored = colors(study)
        for name, line in _by_series(ours).items():
            places = [(level.place, level.recovery or 0) for level in line]
            axes.plot(*zip(*places, strict=True), "-o", color=colored[name], markersize=5, label=f"ours, {name}")
        lines: dict[str, list[tuple[float, float]]] = {}
        for at in published:
            pattern = "" if at.pattern == "unstructured" else at.pattern
            name = ", ".join(filter(None, [at.model, at.loss, pattern, "int8" * at.int8]))
            lines.setdefault(name, []).append((100 * at.sparsity, at.recovery or 0))
        for number, (name, places) in enumerate(lines.items()):
            axes.plot(*zip(*sorted(places), strict=True), linestyle="--", marker="*DsP"[number % 4], color=INK,
                      markerfacecolor=PAPER, markersize=9 if number % 4 == 0 else 6, linewidth=0.9,
                      label=f"published: {name}")  # fmt: skip
        axes.axhline(100, color=SOFT, linewidth=0.9)
        zeros = [level.sparsity for level in ours] + [at.sparsity for at in published]
        _place_axis(axes, sorted({round(100 * fraction, 1) for fraction in zeros}), ZEROS)
        axes.set_ylabel(f"recovery of dense {name_of(metric).removesuffix(', %')}, %")
        axes.set_title("Recovery beside published figures")
        legend(figure, drawn_in(axes))
        return svg(figure, "Recovery over sparsity, ours and published")


def _by_series(found: list[Level]) -> dict[str, list[Level]]:
    lines: dict[str, list[Level]] = {}
    for level in found:
        lines.setdefault(level.series, []).append(level)
    return lines


def _place_axis(axes: Axes, places: list[float], label: str) -> None:
    if len(places) <= MAX_TICKS:
        axes.set_xticks(places, [f"{place:.3g}" for place in places])
        axes.set_xticks([], minor=True)
    axes.set_xlabel(label)
