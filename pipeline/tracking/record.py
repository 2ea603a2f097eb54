"""What MLflow shows of a job, or of what ran before the jobs of a sweep: its outcomes and where their results are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.plan import Stores
from pipeline.record.job import Job
from pipeline.record.outcome import Outcome, Outcomes
from pipeline.store.store import Entry


@dataclass(frozen=True)
class Record:
    """A job with the outcomes of its nodes so far; or without a job, what runs before the jobs of a sweep."""

    outcomes: Outcomes
    stores: Stores
    sweep: str
    """Id of the sweep; empty for a single job."""
    about: Mapping[str, str]
    """Tags by which its runs are found."""
    job: Job | None = None
    started: float = 0.0
    """Seconds since the epoch; 0: now."""
    ended: float = 0.0
    """Seconds since the epoch; 0: it has not ended."""

    @classmethod
    def of_job(cls, job: Job, outcomes: Outcomes, stores: Stores, started: float = 0.0, ended: float = 0.0) -> Record:
        return cls(outcomes, stores, job.sweep, job.about, job, started, ended)

    def stored(self, outcome: Outcome) -> Entry | None:
        """Returns the stored result of a node, from the run's store or (sources) the user's cache; None if there is
        none."""
        if not outcome.status.is_stored:
            return None
        found = (store.find(outcome.stage, outcome.fingerprint) for store in (self.stores.runs, self.stores.cache))
        return next(filter(None, found), None)
