"""`python -m pipeline.draw [group=option] [key=value] > dag.svg`: the DAG of a configuration as SVG."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from html import escape

from pipeline import api
from pipeline.graph import BASELINE, Graph, Node, ancestors
from pipeline.recipes import build

BOX_WIDTH, BOX_HEIGHT = 112, 30
GAP_X, GAP_Y = 30, 26
MARGIN = 10
LINE_HEIGHT = 16
COLOURS = {"model": "#e0f2fe", "data": "#e0f2fe", "evaluate": "#dcfce7", "benchmark": "#dcfce7"}
"""Colours of stages: sources and measurements; all other stages make something."""
OTHERS, TEACHER = "#fef3c7", "#c2410c"
LEGEND = (
    "Dashed: the teacher of distillation.",
    "Not drawn: arrows that a longer path implies (training, evaluation and the benchmark all read the data), and the "
    f"baseline of the other evaluations, {BASELINE}.",
)

Place = tuple[int, int]
"""Column from the left, row below (+) or above (-) the main path."""


def draw(graph: Graph) -> str:
    """Draws a box for each node, with the path to the final model in one row and dashed arrows from the teacher."""
    places = _places(graph)
    top = min(row for _, row in places.values())
    bottom = max(row for _, row in places.values())
    corners = {
        name: (MARGIN + column * (BOX_WIDTH + GAP_X), MARGIN + (row - top) * (BOX_HEIGHT + GAP_Y))
        for name, (column, row) in places.items()
    }
    width = 2 * MARGIN + (1 + max(column for column, _ in places.values())) * (BOX_WIDTH + GAP_X) - GAP_X
    height = 2 * MARGIN + (1 + bottom - top) * (BOX_HEIGHT + GAP_Y) - GAP_Y
    height += LINE_HEIGHT * (len(LEGEND) + 1)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui,sans-serif" '
        'font-size="13">',
        *_arrows(graph, corners),
        *(_box(graph[name], *corner) for name, corner in corners.items()),
        *(
            f'<text x="{MARGIN}" y="{height - MARGIN - LINE_HEIGHT * below}" font-size="11" fill="#888">{text}</text>'
            for below, text in enumerate(reversed(LEGEND))
        ),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _places(graph: Graph) -> dict[str, Place]:
    columns: dict[str, int] = {}
    for name, node in graph.items():
        columns[name] = 1 + max((columns[source] for source in node.inputs.values()), default=-1)
    main = _main_path(graph)
    places: dict[str, Place] = {name: (columns[name], 0) for name in main}
    for name, node in graph.items():
        source = node.inputs.get("model", "")
        rows = [-1, 1, 2, -2] if node.stage == "evaluate" else [1, 2, -1, -2]
        if source in places and source not in main:
            rows.insert(0, places[source][1])
        if name not in places:
            free = (row for row in [*rows, *range(3, len(graph))] if (columns[name], row) not in places.values())
            places[name] = (columns[name], next(free))
    return places


def _main_path(graph: Graph) -> list[str]:
    """Returns the path from the pretrained model to the one that the last evaluation judges, and the benchmark."""
    name = graph.get("evaluate", graph[BASELINE]).inputs["model"]
    path = [name]
    while name := graph[name].inputs.get("model", ""):
        path.insert(0, name)
    return path + [node.name for node in graph.values() if node.stage == "benchmark"]


def _arrows(graph: Graph, corners: dict[str, tuple[int, int]]) -> Iterator[str]:
    yield (
        '<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="context-stroke"/></marker></defs>'
    )
    for name, node in graph.items():
        for role, source in node.inputs.items():
            (x0, y0), (x1, y1) = corners[source], corners[name]
            if role == "teacher":
                x0, x1, apex = x0 + BOX_WIDTH // 2, x1 + BOX_WIDTH // 2, y0 - BOX_HEIGHT - GAP_Y
                yield (
                    f'<path d="M{x0} {y0} C{x0 + 30} {apex} {x1 - 30} {apex} {x1} {y1}" fill="none" '
                    f'stroke="{TEACHER}" stroke-dasharray="4 3" marker-end="url(#a)"><title>teacher</title></path>'
                )
            elif role != "baseline" and not _is_implied(graph, source, node):
                x0, y0, y1, bend = x0 + BOX_WIDTH, y0 + BOX_HEIGHT // 2, y1 + BOX_HEIGHT // 2, GAP_X
                yield (
                    f'<path d="M{x0} {y0} C{x0 + bend} {y0} {x1 - bend} {y1} {x1} {y1}" fill="none" stroke="#888" '
                    'marker-end="url(#a)"/>'
                )


def _is_implied(graph: Graph, source: str, node: Node) -> bool:
    """Returns whether another input of the node needs that source too."""
    return any(
        source in ancestors(graph, other)
        for role, other in node.inputs.items()
        if other != source and role not in ("teacher", "baseline")
    )


def _box(node: Node, x: int, y: int) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" '
        f'fill="{COLOURS.get(node.stage, OTHERS)}" stroke="#666"/>'
        f'<text x="{x + BOX_WIDTH / 2:g}" y="{y + 20}" text-anchor="middle" fill="#111">{escape(node.name)}</text>'
    )


def main(overrides: Sequence[str]) -> None:
    sys.stdout.write(draw(build(api.compose(*overrides))))


if __name__ == "__main__":
    main(sys.argv[1:])
