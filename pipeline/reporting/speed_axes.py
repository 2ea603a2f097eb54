"""Markers, scales and labels of figures of quality over speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.reporting import plot_labels
from pipeline.reporting.figures import scale_ratios
from pipeline.reporting.plot_labels import Box

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FONT = 8


@dataclass(frozen=True)
class Point:
    """A row of the benchmark with the quality of the model it ran."""

    backend: str
    model: str
    speedup: float
    """Decoding speed over torch_fp32 of the dense model; median of the rounds."""
    slowest: float
    fastest: float
    """The same in the slowest and the fastest round."""
    quality: float
    stderr: float | None
    measured: bool
    """Whether the quality is that of this executable, not only that of the checkpoint it was made from."""


def mark(axes: Axes, point: Point, shape: str, color: str, fill: str = "white", size: float = 7) -> None:
    """Draws a point with its bars; `fill` is the colour of unmeasured points."""
    bars = axes.errorbar(
        point.speedup,
        point.quality,
        xerr=[
            [max(point.speedup - point.slowest, 0)],
            [max(point.fastest - point.speedup, 0)],
        ],  # rounding may make it negative by one ulp
        yerr=point.stderr,
        fmt=shape,
        color=color,
        markersize=size,
        markerfacecolor=color if point.measured else fill,
        elinewidth=0.8,
        zorder=3,
        label=f"{point.backend} {point.model}",
    )
    for bar in bars[2]:
        bar.set_alpha(0.35)


def scale(axes: Axes, points: Sequence[Point]) -> None:
    """Sets up the axis of speed-ups, logarithmic where they are far apart."""
    low, high = min(p.slowest for p in points), max(p.fastest for p in points)
    if scale_ratios(axes, "x", low, high, "{x:g}×"):
        axes.set_xlim(low / 1.25, high * 1.25)
    else:
        axes.margins(x=0.15)
        axes.xaxis.set_major_formatter("{x:g}×")
    axes.margins(y=0.3)
    axes.set_xlabel("decode speed over torch fp32 of the dense model")


def write_names(
    axes: Axes, points: Sequence[Point], names: Sequence[str], colors: Sequence[str], around: Sequence[Point]
) -> None:
    """Writes each point's name near its marker, clear of other names, and of the markers and bars of all points
    `around`."""

    def pixels(x: float, y: float) -> tuple[float, float]:
        at = axes.transData.transform((x, y))
        return float(at[0]), float(at[1])

    axes.autoscale(False)  # lines to the names are not data
    labels = [axes.text(0, 0, name, fontsize=FONT, color=color) for name, color in zip(names, colors, strict=True)]
    extents = [label.get_window_extent() for label in labels]
    obstacles: list[Box] = []
    for point in around:
        error = point.stderr or 0.0
        x, y = pixels(point.speedup, point.quality)
        (left, low), (right, high) = (
            pixels(point.slowest, point.quality - error),
            pixels(point.fastest, point.quality + error),
        )
        obstacles += [Box(x - 6, y - 6, x + 6, y + 6), Box(left, y - 2, right, y + 2), Box(x - 2, low, x + 2, high)]
    markers = [pixels(point.speedup, point.quality) for point in points]
    sizes = [(extent.width + 4, extent.height + 3) for extent in extents]
    anchors = plot_labels.place(markers, sizes, obstacles, Box(*axes.get_window_extent().extents), nearest=11)
    to_data = axes.transData.inverted()
    for label, marker, anchor, size in zip(labels, markers, anchors, sizes, strict=True):
        box = plot_labels.box_at(anchor, marker, size)
        x, y = to_data.transform(((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2))
        label.set(position=(x, y), ha="center", va="center")
        ends = to_data.transform([marker, anchor])
        axes.plot(ends[:, 0], ends[:, 1], color=label.get_color(), linewidth=0.6, alpha=0.8, zorder=2, label="_line")
