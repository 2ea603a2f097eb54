"""Whether two models differ, judged item by item where they were evaluated on the same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.contracts import Metrics, UserError
from pipeline.reporting.levels import Level
from pipeline.reporting.results import Results

if TYPE_CHECKING:
    from stages.evaluation.bootstrap import Difference

SAMPLES = 10_000
SEED = 0


def difference(results: Results, a: Level, b: Level, metric: str) -> Difference | None:
    """By how much `metric` of `b` is over that of `a`: a paired bootstrap over the items, and over seeds if there are
    several. None where the items were not kept or are not the same."""
    sides = [[_kept(results, row.evaluation) for row in level.rows] for level in (a, b)]
    (of_a, of_b) = ([model for model in side if model] for side in sides)
    if len(of_a) < len(a.rows) or len(of_b) < len(b.rows):
        return None
    from stages.evaluation.compare import compare

    try:
        found = compare(of_a, of_b, SAMPLES, SEED)
    except (UserError, OSError, ValueError, KeyError):  # the report is not the place to mend what was kept
        return None
    return next((it.difference for it in found if it.metric == metric), None)


def _kept(results: Results, fingerprint: str) -> Metrics | None:
    found = results.by_fingerprint(fingerprint)
    return Metrics(found.folder, found.fingerprint) if found and found.folder else None
