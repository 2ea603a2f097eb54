"""Plots as inline SVG that takes its colours and its type from the page: one picture for light, dark and paper."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
COLORS = tuple(f"#0500{n:02x}" for n in range(10))
"""Stand-ins, each replaced by a colour of the page; series take `COLORS` in order."""
VARIABLES = {INK: "ink", SOFT: "soft", GRID: "grid", PAPER: "paper"} | {c: f"c{n}" for n, c in enumerate(COLORS)}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "squarehead",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "none",
}
WIDTH = 9.4
"""Inches of a figure as wide as the page."""
ENLARGED = 1.5
"""Pixels of the page for a point of the figure, at most."""
ANONYMOUS = re.compile(r' id="[A-Za-z0-9]+_\d+"')
FONT = re.compile(r"font: (?:(\w+) )?([\d.]+)px [^;\"]+")


@contextmanager
def styled() -> Iterator[None]:
    """All drawing for the page happens in this."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        yield


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **how: Any) -> tuple[Figure, list[Axes]]:
    """A figure of that size in inches, and its axes, row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False, **how).flat)


def svg(figure: Figure, label: str) -> str:
    """For a page: sized by it, coloured by its variables, and with `label` for those who cannot see it."""
    written = StringIO()
    figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = ANONYMOUS.sub("", text)  # the same in every figure, and nothing refers to them
    text = FONT.sub(lambda found: f"font-size: {found[2]}px" + (f"; font-weight: {found[1]}" if found[1] else ""), text)
    for stand_in, variable in VARIABLES.items():
        text = text.replace(stand_in, f"var(--{variable})")
    head, _, rest = text.partition(">")
    width = float(re.search(r'width="([\d.]+)pt"', head)[1])  # type: ignore[index]
    head = re.sub(r' (?:width|height)="[\d.]+pt"', "", head)
    name = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'{head} role="img" aria-label="{name}" style="width: 100%; max-width: {width * ENLARGED:.0f}px">{rest}'
