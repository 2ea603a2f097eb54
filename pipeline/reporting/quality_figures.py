"""Plots of what the zeros cost: quality over sparsity (or another option), and recovery beside published ones."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING

from pipeline.reporting import plots
from pipeline.reporting.cells import name_of, plain
from pipeline.reporting.figures import COLORS, INK, PAPER, SOFT, WIDTH, canvas, styled, svg
from pipeline.reporting.levels import Level, levels
from pipeline.reporting.plots import MARKERS
from pipeline.reporting.study import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ZEROS = "zeros among the prunable weights, %"
NARROW = 4.0
"""Percent of sparsity that an axis spans at least."""
TICKS = 10
"""Levels that have a name at the axis each."""
DODGE = 0.008
"""Between the bars of series that would cover each other, as a share of the axis."""
LONG = 34
"""Characters of a name that leave no room beside the axes."""
HALF = 44
"""Characters of a name in a legend that leaves room for a second column."""


def colors(study: Study) -> dict[str, str]:
    """Series -> colour, the same in every plot; one-shot has none."""
    names = dict.fromkeys(study.series(row) for row in study.models if row.kind in ("evaluate", "evaluate_q"))
    bare = dict.fromkeys(name.removesuffix(" int8") for name in names)
    found = {name: COLORS[at % len(COLORS)] for at, name in enumerate(sorted(bare))}
    return found | {f"{name} int8": color for name, color in found.items()}


def quality(study: Study, metric: str) -> str | None:
    """Over sparsity, or over another number where that is the same. SVG, or None where there is no sparse model."""
    lines = _by_series(levels(study, metric))
    places = sorted({level.place for line in lines.values() for level in line if not isnan(level.place)})
    if not places:
        return None
    over_sparsity = study.axis == "sparsity"
    with styled():
        figure, (axes,) = canvas(WIDTH, 3.7)
        reach = max(places[-1] - places[0], NARROW) if over_sparsity else 0.0
        colored = colors(study)
        for at, (name, line) in enumerate(lines.items()):
            shift = DODGE * reach * (at - (len(lines) - 1) / 2)
            _draw(axes, metric, name, line, shift, colored.get(name, SOFT), MARKERS[at % len(MARKERS)])
        for row in (row for row in study.models if row.kind == "dense_eval" and metric in row.qualities):
            dense = row.qualities[metric]
            value, error = plain(metric, dense.value), plain(metric, dense.stderr or 0)
            axes.axhline(value, color=INK, linewidth=1, linestyle="--", label=row.label)
            axes.axhspan(value - error, value + error, color=INK, alpha=0.05, linewidth=0)
        if over_sparsity:
            _published_values(axes, study, metric)
        values = [level.value for line in lines.values() for level in line]
        values += [row.qualities[metric].value for row in study.models if row.is_baseline and metric in row.qualities]
        plots.scale_quality(axes, metric, values)
        if over_sparsity:
            axes.set_xlim(places[0] - 0.07 * reach, places[-1] + 0.07 * reach)
        elif places[0] > 0 and places[-1] >= 4 * places[0]:
            axes.set_xscale("log")
        what = "sparsity" if over_sparsity else study.axis
        _place_axis(axes, places, ZEROS if over_sparsity else what)
        seeds = any(len(level.each) > 1 for line in lines.values() for level in line)
        spread = "standard error, of seeds the deviation" if seeds else "standard error"
        axes.set_ylabel(name_of(metric))
        better = "higher" if study.higher_is_better(metric) else "lower"
        axes.set_title(f"{name_of(metric)} over {what} ({better} is better; bars: {spread})")
        _legend(figure, axes)
        return svg(figure, f"{name_of(metric)} over {what}, a line for each of: {', '.join(lines)}")


def _draw(axes: Axes, metric: str, name: str, line: list[Level], shift: float, color: str, marker: str) -> None:
    one_shot = line[0].rows[0].kind == "one_shot_eval"
    seeds = max(len(level.each) for level in line)
    if any(isnan(level.place) for level in line):  # what the axis tells does not make these models
        for level in line:
            axes.axhline(plain(metric, level.value), color=color, linestyle=":", linewidth=1.2, label=name)
        return
    axes.errorbar(
        [level.place + shift for level in line],
        [plain(metric, level.value) for level in line],
        yerr=[plain(metric, level.error or 0) for level in line],
        fmt=":" if one_shot else "-", marker="x" if one_shot else marker, color=color,
        markersize=5, linewidth=1.4, elinewidth=0.9, capsize=2,
        label=name + (f" (up to {seeds} seeds)" if seeds > 1 else ""),
    )  # fmt: skip
    for level in line:
        if len(level.each) > 1:
            values = [plain(metric, value) for value in level.each]
            axes.plot([level.place + shift] * len(values), values, ".", color=color, alpha=0.5, markersize=4)


def _published_values(axes: Axes, study: Study, metric: str) -> None:
    """Of our model on our data, in floating point; in the colour of the series that has the loss for its name."""
    told = {
        (at.reference.loss or "one-shot", at.reference.sparsity, at.reference.value)
        for at in study.comparisons
        if at.metric == metric and at.same_model and at.same_data and at.reference.sparsity and not at.reference.int8
    }
    colored = colors(study)
    for loss in sorted({loss for loss, _, _ in told}):
        places = [(100 * sparsity, plain(metric, value)) for name, sparsity, value in told if name == loss]
        axes.plot(*zip(*places, strict=True), linestyle="", marker="*", color=colored.get(loss, SOFT),
                  markerfacecolor=PAPER, markersize=10, label=f"published, {loss}")  # fmt: skip


def recovery_over_sparsity(study: Study) -> str | None:
    """Ours and the published ones, of whatever model; None where no job names a table that tells recoveries."""
    metric = study.metric
    told = [at for at in study.references if at.metric == metric and at.sparsity and at.loss and at.recovery]
    ours = [level for level in levels(study, metric) if level.rows[0].kind == "evaluate" and level.recovery is not None]
    if not told or not ours or study.axis != "sparsity":
        return None
    with styled():
        figure, (axes,) = canvas(WIDTH, 3.6)
        colored = colors(study)
        for name, line in _by_series(ours).items():
            places = [(level.place, level.recovery or 0) for level in line]
            axes.plot(*zip(*places, strict=True), "-o", color=colored[name], markersize=5, label=f"ours, {name}")
        lines: dict[str, list[tuple[float, float]]] = {}
        for at in told:
            name = ", ".join(
                filter(None, [at.model, at.loss, at.pattern.replace("unstructured", ""), "int8" * at.int8])
            )
            lines.setdefault(name, []).append((100 * at.sparsity, at.recovery or 0))
        for number, (name, places) in enumerate(lines.items()):
            axes.plot(*zip(*sorted(places), strict=True), linestyle="--", marker="*DsP"[number % 4], color=INK,
                      markerfacecolor=PAPER, markersize=9 if number % 4 == 0 else 6, linewidth=0.9,
                      label=f"published: {name}")  # fmt: skip
        axes.axhline(100, color=SOFT, linewidth=0.9)
        zeros = [level.sparsity for level in ours] + [at.sparsity for at in told]
        _place_axis(axes, sorted({round(100 * fraction, 1) for fraction in zeros}), ZEROS)
        axes.set_ylabel(f"recovery of dense {name_of(metric).removesuffix(', %')}, %")
        axes.set_title("Recovery beside published ones")
        _legend(figure, axes)
        return svg(figure, "Recovery over sparsity, ours and published")


def _by_series(found: list[Level]) -> dict[str, list[Level]]:
    lines: dict[str, list[Level]] = {}
    for level in found:
        lines.setdefault(level.series, []).append(level)
    return lines


def _place_axis(axes: Axes, places: list[float], label: str) -> None:
    if len(places) <= TICKS:
        axes.set_xticks(places, [f"{place:.3g}" for place in places])
        axes.set_xticks([], minor=True)
    axes.set_xlabel(label)


def _legend(figure: Figure, axes: Axes) -> None:
    """Beside the axes, or below them where names are long."""
    handles, labels = axes.get_legend_handles_labels()
    kept = dict(zip(labels, handles, strict=True))  # once, though several dense models have a line
    if max(map(len, kept)) <= LONG:
        figure.legend(list(kept.values()), list(kept), loc="outside right upper")
    else:
        columns = 2 if max(map(len, kept)) <= HALF else 1
        figure.legend(list(kept.values()), list(kept), loc="outside lower left", ncols=columns)
