"""Figures of training curves, of layers at pruning, and of the time that stages took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.estimating.estimates import format_duration
from pipeline.record.folders import JobRecord
from pipeline.record.result import Result
from pipeline.reporting.figures import COLORS, GRID, INK, SOFT, WIDTH, canvas, drawn_in, key, legend, styled, svg
from pipeline.reporting.quality_figures import colors
from pipeline.reporting.study import Study
from stages.index import described

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TICKS = 10
"""Number of blocks that an axis has room to name."""
MAX_PANELS = 9
MARGIN = 0.08
"""Space of a panel above and below its curves, as a share of their range."""
SMOOTHED = 10
"""Steps over which a training curve is averaged."""
SKIPPED_SHARE = 0.15
"""Share of the steps that may leave the panel: the first ones after pruning would hide the rest."""
Line = list[tuple[int, float]]


@dataclass(frozen=True)
class Curve:
    """A model's fine-tuning, its rungs one after the other."""

    panel: str
    series: str
    training: Line
    """Task loss over steps."""
    validation: Line
    rungs: tuple[int, ...]
    """Steps at which the next rung begins."""
    sparsity: float


def curves(study: Study) -> list[Curve]:
    """Returns a curve for each distinct fine-tuned model, by sparsity, the dense one first."""
    found: dict[str, Curve] = {}
    for at, job in enumerate(study.jobs):
        for model in ("dense", "sparse"):
            trained = (node for node in job.nodes.values() if described(node.stage).trains)
            nodes = [node for node in trained if described(node.stage).model == model]
            steps = [result for node in nodes if (result := study.results.of(node))]
            if steps and steps[-1].fingerprint not in found:
                found[steps[-1].fingerprint] = _curve(study, at, job, model, steps)
    shown = [curve for curve in found.values() if curve.training or curve.validation]
    return sorted(shown, key=lambda curve: curve.sparsity)


def _curve(study: Study, at: int, job: JobRecord, model: str, results: Sequence[Result]) -> Curve:
    training: Line = []
    validation: Line = []
    rungs = []
    begin = 0
    for result in results:
        losses = result.curve("loss_ce") or result.curve("loss")
        judged = result.curve("validation_loss")
        training += [(begin + step, value) for step, value in losses]
        validation += [(begin + step, value) for step, value in judged]
        begin = max((step for step, _ in training + validation), default=begin)
        rungs.append(begin)
    if model == "dense":
        return Curve("dense", "dense", training, validation, (), sparsity=0.0)
    pattern = job.config.get("prune", {}).get("pattern", "unstructured")
    sparsity = job.config.get("sparsity", 0)
    level = pattern if pattern != "unstructured" else f"{100 * sparsity:g} %"
    row = next((row for row in study.models if row["kind"] == "evaluate" and at in row["jobs"]), None)
    name = study.naming.series(row) if row else study.losses[at]
    if row and study.naming.axis != "sparsity":
        level = f"{study.naming.axis} {row['options'].get(study.naming.axis, '')}"
    return Curve(level, name, training, validation, tuple(rungs[:-1]), sparsity)


def training(study: Study) -> str | None:
    """Draws a panel for the dense model and for each sparsity. Returns None if no stage trained."""
    found = curves(study)
    panels = list(dict.fromkeys(curve.panel for curve in found))[:MAX_PANELS]
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with styled():
        figure, axes = canvas(WIDTH, 2.5 * rows + 0.5, rows, columns)
        colored = colors(study) | {"dense": INK}
        named: dict[str, str] = {}
        for place, panel in zip(axes, panels, strict=False):
            inside = [curve for curve in found if curve.panel == panel]
            for curve in inside:
                color = named[curve.series] = colored.get(curve.series, SOFT)
                _draw(place, curve, color)
            _limit(place, [_smooth(curve.training) for curve in inside] + [curve.validation for curve in inside])
            place.set_title(panel if panel == "dense" else f"{panel} sparse" if "%" in panel else panel)
        for place in axes[len(panels) :]:
            place.remove()
        for place in axes[max(0, len(panels) - columns) : len(panels)]:
            place.set_xlabel("step")
        figure.supylabel("cross-entropy", fontsize=9)
        legend(figure, _handles(named))
        return svg(figure, "Training and validation loss over steps")


def _draw(axes: Axes, curve: Curve, color: str) -> None:
    if curve.training:
        axes.plot(*zip(*_smooth(curve.training), strict=True), color=color, linewidth=0.9, alpha=0.6)
    if curve.validation:
        axes.plot(*zip(*curve.validation, strict=True), "-o", color=color, markersize=3.5, linewidth=1.6)
    for step in curve.rungs:
        axes.axvline(step, color=GRID, linewidth=0.8)


def _smooth(line: Line) -> Line:
    """Averages each point over the last steps."""
    return [(step, sum(v for _, v in line[max(0, i + 1 - SMOOTHED) : i + 1]) / min(i + 1, SMOOTHED))
            for i, (step, _) in enumerate(line)]  # fmt: skip


def _limit(axes: Axes, lines: Sequence[Line]) -> None:
    last = max((step for line in lines for step, _ in line), default=0)
    later = [value for line in lines for step, value in line if step >= SKIPPED_SHARE * last]
    if later:
        low, high = min(later), max(later)
        axes.set_ylim(low - MARGIN * (high - low or high), high + MARGIN * (high - low or high))


def _handles(series: dict[str, str]) -> list[Any]:
    kinds = [
        key(f"training, mean of {SMOOTHED} steps", linewidth=0.9, alpha=0.6),
        key("validation", marker="o", markersize=3.5, linewidth=1.6),
    ]
    return [*(key(name, color, linewidth=2) for name, color in series.items()), *kinds]


def layers(study: Study) -> str | None:
    """Draws error and sparsity of each linear, in the order of pruning, a line for each pruning. Returns None if
    nothing was pruned."""
    found: dict[str, tuple[str, list[dict[str, float | str | None]]]] = {}
    for job in study.jobs:
        for node in job.nodes.values():
            result = study.results.of(node) if described(node.stage).model == "sparse" else None
            linears = result.facts.get("layers") if result else None
            if result and linears:
                rules = result.config
                pattern = rules["prune"]["pattern"]
                level = pattern if pattern != "unstructured" else f"{100 * rules['sparsity']:g} %"
                start = ", one-shot" if node.name == "one_shot" else ""
                found.setdefault(result.fingerprint, (f"{level}{start}", linears))
    lines = sorted(found.values(), key=lambda it: float(it[1][0]["sparsity"] or 0))
    if not lines:
        return None
    panels = {}
    if any(layer["error"] for _, linears in lines for layer in linears):  # magnitude pruning does not measure outputs
        panels["error"] = "relative error of outputs"
    if any(len({layer["sparsity"] for layer in linears}) > 1 for _, linears in lines):
        panels["sparsity"] = "sparsity"
    if not panels:
        return None
    with styled():
        figure, axes = canvas(WIDTH, 0.6 + 2.4 * len(panels), len(panels), 1, sharex=True)
        shades = {name: COLORS[at % len(COLORS)] for at, name in enumerate(dict.fromkeys(name for name, _ in lines))}
        for place, (figure_of, label) in zip(axes, panels.items(), strict=True):
            for name, linears in lines:
                drawn = [(at, layer[figure_of]) for at, layer in enumerate(linears) if layer[figure_of]]
                style = "--" if "one-shot" in name else "-"
                place.plot(*zip(*drawn, strict=True), color=shades[name], linewidth=1.1, linestyle=style, label=name)
            place.set_ylabel(label)
            place.set_yscale("log" if figure_of == "error" else "linear")
        axes[0].set_title("Layers as they were pruned")
        axes[-1].set_xlabel("linear, in the order of pruning")
        _blocks(axes[-1], [str(layer["name"]) for layer in lines[0][1]])
        legend(figure, drawn_in(axes[0]))
        return svg(figure, "Error and sparsity of each linear, a line for each pruning")


def _blocks(axes: Axes, names: Sequence[str]) -> None:
    """Sets ticks at the first linear of some of the blocks, by the number in its name."""
    starts = [(at, name) for at, name in enumerate(names) if at == 0 or _block(name) != _block(names[at - 1])]
    shown: list[tuple[int, str]] = []
    for at, name in starts:
        if not shown or at - shown[-1][0] >= len(names) / TICKS:
            shown.append((at, name))
    axes.set_xticks([at for at, _ in shown], [_block(name) for _, name in shown])


def _block(name: str) -> str:
    """Returns the name of a linear's block: model.encoder.layers.3.fc1 -> encoder 3; model.layers.3.mlp.up_proj ->
    block 3."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if at is None:
        return name
    side = [part for part in parts[:at] if part in ("encoder", "decoder")]
    return " ".join([*(side or ["block"]), parts[at]])


def times(study: Study) -> str | None:
    """Draws the seconds of each group of the DAG, and those that sharing saved."""
    groups = [group for group in study.groups if group.seconds]
    if not groups:
        return None
    with styled():
        figure, (axes,) = canvas(WIDTH, 0.27 * len(groups) + 1.1)
        names = [f"{group.name}  ({group.there})" for group in groups]
        seconds = [group.seconds for group in groups]
        axes.barh(names, seconds, color=COLORS[0], height=0.62, label="made once")
        saved = [group.saved for group in groups]
        if any(saved):
            axes.barh(names, saved, left=seconds, color=COLORS[0], alpha=0.25, height=0.62,
                      label="again for each job: saved")  # fmt: skip
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("seconds")
        axes.set_title(f"Time by stage (distinct results): {format_duration(sum(seconds))} in all")
        legend(figure, drawn_in(axes))
        return svg(figure, "Seconds by stage")
