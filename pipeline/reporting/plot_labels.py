"""Places labels in a crowded plot: plain geometry, in any unit (pixels, for example)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

OUTSIDE = 10_000
"""Cost of a label outside the plot: more than any number of collisions."""

COVERED = 30
"""Cost of a label that covers something and so is unreadable, in crossings of lines."""

Point = tuple[float, float]

REACH = (1.0, 1.4, 2.2, 3.2, 4.4, 5.8, 7.4, 9.2, 11.2, 13.4, 16.0)
"""Distances of a label from its marker, in multiples of the nearest one; tried in this order."""
BESIDE = ((1, 0), (-1, 0))
"""Directions that are tried first, and only near: a long level line would be taken for data."""
ABOUT = ((0.5, 0.9), (0.5, -0.9), (-0.5, 0.9), (-0.5, -0.9), (0, 1), (0, -1))


class Box(NamedTuple):
    x0: float
    y0: float
    x1: float
    y1: float

    def overlaps(self, other: Box) -> bool:
        return self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1

    def holds(self, other: Box) -> bool:
        return self.x0 <= other.x0 and other.x1 <= self.x1 and self.y0 <= other.y0 and other.y1 <= self.y1

    def crossed(self, start: Point, end: Point) -> bool:
        """Returns whether the line from `start` to `end` enters the box: clipped to each side in turn, something is
        left."""
        first, last = 0.0, 1.0
        for low, high, at, to in ((self.x0, self.x1, start[0], end[0]), (self.y0, self.y1, start[1], end[1])):
            if at == to:
                if not low < at < high:
                    return False
                continue
            enter, leave = sorted(((low - at) / (to - at), (high - at) / (to - at)))
            first, last = max(first, enter), min(last, leave)
        return first < last


def place(
    markers: Sequence[Point], sizes: Sequence[Point], obstacles: Sequence[Box], room: Box, nearest: float
) -> list[Point]:
    """Returns the anchor of each marker's label of the given width and height: the middle of the side (or edge) that
    faces the marker, from which a line goes to it.

    Labels go to the nearest place inside `room` where they cover no obstacle, no other label and no other's line; if
    there is none, to where they collide least.
    """
    written: list[Box] = []
    lines: list[tuple[Point, Point]] = []
    anchors: dict[int, Point] = {}
    for i in sorted(range(len(markers)), key=lambda i: markers[i]):
        x, y = markers[i]
        steps = [*BESIDE, *((reach * dx, reach * dy) for reach in REACH for dx, dy in ABOUT)]
        options = [(x + nearest * dx, y + nearest * dy) for dx, dy in steps]

        def collisions(anchor: Point, i: int = i) -> int:
            box = box_at(anchor, markers[i], sizes[i])
            covered = sum(box.overlaps(other) for other in (*obstacles, *written))
            crossing = sum(box.crossed(*line) for line in lines)
            crossed = sum(other.crossed(markers[i], anchor) for other in written)
            return COVERED * covered + crossing + crossed + OUTSIDE * (not room.holds(box))

        anchors[i] = min(options, key=collisions)  # the nearest of those without any
        written.append(box_at(anchors[i], markers[i], sizes[i]))
        lines.append((markers[i], anchors[i]))
    return [anchors[i] for i in range(len(markers))]


def box_at(anchor: Point, marker: Point, size: Point) -> Box:
    """Returns the box that a label covers: right or left of its anchor, seen from the marker, or else right above or
    below it."""
    width, height = size
    across, up = _sign(anchor[0] - marker[0]), _sign(anchor[1] - marker[1])
    x0 = anchor[0] - width * (1 - across) / 2
    y0 = anchor[1] - height * (1 - (up if across == 0 else 0)) / 2
    return Box(x0, y0, x0 + width, y0 + height)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
