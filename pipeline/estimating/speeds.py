"""Reads start-up time and speed of a stage from its earlier results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from pipeline.estimating.history import Past
from stages.cost import Cost, Workload

ALIKE = 2.0
"""Ratio of two runs' operations up to which the time of one predicts the other's reliably."""
TOO_SMALL = 1000.0
"""Ratio of the operations to those of an earlier run from which that run says nothing of the speed: a model of a few
thousand parameters spends its time outside of its products."""


@dataclass(frozen=True)
class Measured:
    """An earlier run, measured in operations of its stage's formulas."""

    past: Past
    operations: float
    operations_per_second: float
    fixed_seconds: float
    """Time of loading, writing and whatever else does not grow with the operations; 0 if the record does not say."""

    @classmethod
    def of(cls, past: Past, load: Workload, cost: Cost) -> Measured | None:
        """Returns None if the operations of the run are unknown."""
        if not past.parameters or past.seconds <= 0:
            return None
        try:
            work = cost.operations(load, past.parameters)
            steps = cost.operations(load.steps_alone, past.parameters) if past.step_seconds else None
        except KeyError:  # of an earlier version, with other options
            return None
        if not work:
            return None
        if not steps or not past.step_seconds:
            return cls(past, work, work / past.seconds, 0.0)
        rate = steps / past.step_seconds
        return cls(past, work, rate, max(past.seconds - work / rate, 0.0))

    def seconds(self, work: float, threads: int) -> float:
        """Returns the time of a run of `work` operations."""
        share = threads / self.past.threads if self.past.device == "cpu" else 1.0
        return self.fixed_seconds + work / (self.operations_per_second * share)


def reliable_seconds(runs: Iterable[Measured], work: float, threads: int) -> float | None:
    """Returns the median time by runs of about as many operations; None if there are none."""
    alike = [run for run in runs if work / ALIKE <= run.operations <= work * ALIKE]
    return median(run.seconds(work, threads) for run in alike) if alike else None


def rough_seconds(
    runs: Sequence[Measured], work: float, threads: int, preferred: Sequence[Callable[[Measured], bool]]
) -> float | None:
    """Returns the time by the longest of the runs that meet the first condition that any run meets, or else by the
    longest of all: start-up hides the speed of short ones. None if there are no runs, or only far too small ones."""
    telling = [run for run in runs if work <= run.operations * TOO_SMALL]
    meeting = ([run for run in telling if condition(run)] for condition in preferred)
    chosen = next(filter(None, meeting), telling)
    if not chosen:
        return None
    longest = max(run.operations for run in chosen)
    return median(run.seconds(work, threads) for run in chosen if run.operations * ALIKE >= longest)
