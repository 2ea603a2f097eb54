"""Runs what precedes the first job of a sweep: sources, checks with them, and results that several jobs share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from engine import cpu
from pipeline import preflight
from pipeline.estimating.estimates import of_jobs
from pipeline.plan import Plan, Planned, Stores
from pipeline.record.outcome import Outcome, Outcomes, write_outcomes
from pipeline.record.status import Status
from pipeline.record.sweep import SHARED, Sweep, read_shared, shared
from pipeline.run import run_plan
from pipeline.store.store import Entry
from pipeline.sweeps.plan import JobPlan, distinct
from pipeline.sweeps.tables import listed
from pipeline.table import warn
from pipeline.tracking.tracker import Tracker
from stages.contracts import UserError
from stages.index import described


def with_results(plan: Plan, made: Mapping[str, Entry]) -> Plan:
    """Returns the plan of a job with the results that were made since, by fingerprint."""
    return {
        name: replace(item, status=Status.HIT, entry=made[item.fingerprint], replace=False)
        if item.fingerprint in made
        else item
        for name, item in plan.items()
    }


def made_before(folder: Path, stores: Stores) -> dict[str, Entry]:
    """Returns what the shared stages of the sweep in `folder` made, by fingerprint."""
    return {key: entry for key, it in read_shared(folder).items() if (entry := _entry(it, stores))}


def failures(folder: Path) -> dict[str, str]:
    """Returns why shared stages failed, by fingerprint, so that no job tries them again."""
    return {key: it.error for key, it in read_shared(folder).items() if it.status == Status.FAILED}


def run_shared(sweep: Sweep, plans: Sequence[JobPlan], tracker: Tracker, console: Console) -> None:
    """Makes the sources, checks every job with them, and runs what several jobs would otherwise wait for each other to
    make; with all the machine's threads, if the jobs do not set a number.

    Raises UserError if no job could end well.
    """
    (sweep.folder / SHARED).unlink(missing_ok=True)
    common = shared(sweep.jobs)
    work = SharedWork(sweep, plans, tracker, console)
    try:
        work.run(lambda item: item.spec.is_source)
        work.check()
        work.run(lambda item: item.fingerprint in common)
    finally:
        try:
            tracker.finish(work.outcomes)
        except UserError as lost:
            warn(f"tracking: {lost}", console)


@dataclass
class SharedWork:
    """The work of a sweep before its first job."""

    sweep: Sweep
    plans: Sequence[JobPlan]
    tracker: Tracker
    console: Console
    outcomes: Outcomes = field(default_factory=dict)
    """Outcomes by fingerprint."""
    made: dict[str, Entry] = field(default_factory=dict)
    """Results by fingerprint."""

    def run(self, wanted: Callable[[Planned], bool]) -> None:
        """Runs the nodes of all jobs that are `wanted` and not stored, each once."""
        waiting = {key: it for key, it in distinct(self.plans).items() if wanted(it) and self._waits(it)}
        if not waiting:
            return
        self.console.print(f"[bold]shared stages first[/]: {listed([it.node.name for it in waiting.values()])}")
        for job in self.plans:
            plan = with_results(job.plan, self.made)
            part = {name: it for name, it in plan.items() if wanted(it) and it.status != Status.UNNEEDED}
            if job.config is None or not any(it.fingerprint in waiting and self._waits(it) for it in part.values()):
                continue
            config = job.config.model_copy(update={"threads": job.threads or cpu.cores()})
            stores = Stores.of(config)
            outcomes: Outcomes = {}
            known = {key: it.error for key, it in self.outcomes.items() if it.status == Status.FAILED}
            try:
                run_plan(part, config, stores, self.tracker, self.console, self.sweep.folder, True, outcomes, known)
            finally:
                for name, outcome in outcomes.items():
                    if part[name].status == Status.TO_RUN:
                        self.outcomes.setdefault(outcome.fingerprint, outcome)
                write_outcomes(self.outcomes, self.sweep.folder / SHARED)
            self.made |= {it.fingerprint: entry for it in outcomes.values() if (entry := _entry(it, stores))}

    def check(self) -> None:
        """Prints which jobs would fail. Raises UserError if all would."""
        broken: dict[int, str] = {}
        plans = {job.job.num: with_results(job.plan, self.made) for job in self.plans}
        estimates = of_jobs((plans[job.job.num], job.config) for job in self.plans if job.config)
        for job in self.plans:
            if job.config is None:
                continue
            plan = plans[job.job.num]
            entries = {name: it.entry for name, it in plan.items() if it.entry and it.status == Status.HIT}
            found = [f"{name}: {error}" for name, error in preflight.problems(plan, entries, job.config.device).items()]
            own = {name: estimates[it.fingerprint] for name, it in plan.items() if it.fingerprint in estimates}
            found += map(str, preflight.too_little(plan, own, Stores.of(job.config)))
            if found:
                broken[job.job.num] = f"job {job.job.num} ({job.job.name}) would fail: {found[0]}"
        if broken and len(broken) == sum(job.config is not None for job in self.plans):
            raise UserError(f"every job of this sweep would fail; {next(iter(broken.values()))}")
        for line in broken.values():
            warn(line, self.console)

    def _waits(self, item: Planned) -> bool:
        return item.status == Status.TO_RUN and item.fingerprint not in self.outcomes


def _entry(outcome: Outcome, stores: Stores) -> Entry | None:
    if not outcome.status.is_stored:
        return None
    return stores.for_stage(described(outcome.stage)).find(outcome.stage, outcome.fingerprint)
