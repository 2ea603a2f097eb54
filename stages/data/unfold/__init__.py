"""Unfolding of rows: makes the rows of a format from a source with rows of another form (trees, instructions with
instances). A file each.

A member defines `UNFOLD`, a function. Its file is read when a run is planned: plain Python, no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from stages.data.rows import Row
from stages.kinds import Kinds

Unfold = Callable[[Row], Iterator[Row]]
"""Function that yields the rows in one row of the source. Raises UserError for one of another form."""
UNFOLDS: Kinds[Unfold] = Kinds("way to unfold rows", __name__, "UNFOLD", "data.unfold")
