"""What makes the rows of a format out of a source whose rows are something else: trees, instructions with instances.
A file each.

A member defines `UNFOLD`, a function. Its file is read when a run is planned: plain Python, no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from stages.data.rows import Row
from stages.kinds import Kinds

Unfold = Callable[[Row], Iterator[Row]]
"""The rows that one row of the source holds. Raises UserError for one of another form."""
UNFOLDS: Kinds[Unfold] = Kinds("way to unfold rows", __name__, "UNFOLD", "data.unfold")
