"""Plots as inline SVG that takes colours and fonts from the page: the same picture for light, dark and print."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
COLORS = tuple(f"#0500{n:02x}" for n in range(10))
"""Placeholders, each replaced by a colour of the page; series take `COLORS` in order."""
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
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p", "h", "<", ">", "*", "8", "d", "H")
FAR_RATIO = 3.0
"""Ratio of the largest to the smallest perplexity or speed-up above which their axis is logarithmic."""
MAX_COLUMNS = 4
"""Columns of a legend."""
LABEL_CHARACTERS = 90
"""Characters in a line of a legend."""
WIDTH = 9.4
"""Width of a full-width figure, in inches."""
ENLARGED = 1.5
"""Largest number of page pixels for a point of the figure."""
ANONYMOUS = re.compile(r' id="[A-Za-z0-9]+_\d+"')
FONT = re.compile(r"font: (?:(\w+) )?([\d.]+)px [^;\"]+")


@contextmanager
def styled() -> Iterator[None]:
    """Sets the style in which all figures of the page are drawn."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        yield


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **how: Any) -> tuple[Figure, list[Axes]]:
    """Returns a figure of that size in inches, and its axes, row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False, **how).flat)


def svg(figure: Figure, label: str) -> str:
    """Returns the figure as SVG for a page: sized by it, coloured by its variables, with `label` for screen readers."""
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


def standalone(drawn: str) -> str:
    """Returns a figure of the page as a file of its own, in the page's light colours."""
    light = (Path(__file__).parent / "templates" / "page.css").read_text(encoding="utf-8").partition("}")[0]
    for name, color in re.findall(r"--([\w-]+): (#\w+)", light):
        drawn = drawn.replace(f"var(--{name})", color)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + drawn.replace(
        'style="', 'style="background: white; font-family: sans-serif; ', 1
    )


def key(label: str, color: str = SOFT, **style: Any) -> Any:
    """Returns a legend handle that stands for no line in particular: a colour, or a shape."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, label=label, **style)


def legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Draws a legend below the axes, in as many columns as fit; the figure grows by its height."""
    kept = {fill(handle.get_label(), LABEL_CHARACTERS): handle for handle in handles}  # each name once
    for columns in range(min(MAX_COLUMNS, len(kept)), 0, -1):
        shown = figure.legend(list(kept.values()), list(kept), loc="outside lower left", ncols=columns)
        extent = shown.get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined]
        if extent.width <= figure.bbox.width or columns == 1:
            figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)
            return
        shown.remove()


def drawn_in(axes: Axes) -> list[Any]:
    """Returns the handles of everything with a label in the axes."""
    return axes.get_legend_handles_labels()[0]


def scale_ratios(axes: Axes, which: Literal["x", "y"], low: float, high: float, form: str = "{x:g}") -> bool:
    """Makes an axis of ratios logarithmic where its values are far apart. Returns whether it is."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if high <= FAR_RATIO * low:
        return False
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter(form))
    axis.set_minor_formatter(NullFormatter())
    return True


def scale_quality(axes: Axes, metric: str, values: Sequence[float]) -> None:
    if "perplexity" in metric:
        scale_ratios(axes, "y", min(values), max(values))
