"""Draws the DAG of all jobs as inline SVG: a box for each group of nodes, with the number of results and jobs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pipeline.reporting.sharing import Group

BOX_WIDTH, BOX_HEIGHT = 138, 54
GAP_X, GAP_Y = 26, 18
MARGIN = 4


def draw(groups: Sequence[Group], jobs: int) -> str:
    """Draws the layers from left to right; groups that several jobs share are filled."""
    layers: dict[int, list[Group]] = {}
    for group in groups:
        layers.setdefault(group.layer, []).append(group)
    tall = max(len(layer) for layer in layers.values())
    places = {
        group.name: (MARGIN + x * (BOX_WIDTH + GAP_X), MARGIN + (y + (tall - len(layer)) / 2) * (BOX_HEIGHT + GAP_Y))
        for x, layer in layers.items()
        for y, group in enumerate(layer)
    }
    width = 2 * MARGIN + (max(layers) + 1) * (BOX_WIDTH + GAP_X) - GAP_X
    height = 2 * MARGIN + tall * (BOX_HEIGHT + GAP_Y) - GAP_Y
    lines = [_arrow(places[source], places[group.name]) for group in groups for source in group.inputs]
    boxes = [_box(group, *places[group.name]) for group in groups]
    summary = f"The DAG of {jobs} jobs: " + ", ".join(f"{group.name} {group.results}" for group in groups)
    return (
        f'<svg viewBox="0 0 {width} {height:g}" role="img" aria-label="{escape(summary, quote=True)}" '
        f'style="width: 100%; max-width: {width}px" class="dag">' + "".join(lines + boxes) + "</svg>"
    )


def _box(group: Group, x: float, y: float) -> str:
    shared = group.uses > group.results
    left = group.results - group.there
    counts = (
        f"{group.results} for {group.jobs} jobs" if shared else f"{group.results} result{'s' * (group.results != 1)}"
    )
    if group.results == 1 and shared:
        counts = f"once for {group.jobs} jobs"
    counts += f", {left} to go" if left else ""
    middle = x + BOX_WIDTH / 2
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" '
        f'class="{"shared" if shared else "own"}"/>'
        f'<text x="{middle:g}" y="{y + 17:g}" class="name">{escape(group.name)}</text>'
        f'<text x="{middle:g}" y="{y + 32:g}">{counts}</text>'
        f'<text x="{middle:g}" y="{y + 46:g}" class="soft">{group.seconds:,.0f} s</text>'
    )


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    x0, y0 = start[0] + BOX_WIDTH, start[1] + BOX_HEIGHT / 2
    x1, y1 = end[0], end[1] + BOX_HEIGHT / 2
    bend = GAP_X * 0.9
    return f'<path d="M{x0:g} {y0:g} C{x0 + bend:g} {y0:g} {x1 - bend:g} {y1:g} {x1:g} {y1:g}"/>'
