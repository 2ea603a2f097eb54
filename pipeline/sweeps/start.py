"""What happens before the first job of a sweep: every job is planned, the record is written, shared stages run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from engine import cpu
from pipeline import credentials, ending, preflight
from pipeline.job import is_done
from pipeline.plan import Plan, Planned, Stores
from pipeline.process import this_process
from pipeline.run import Outcome, Outcomes, run_plan
from pipeline.store.store import Entry
from pipeline.sweeps.plan import JobPlan, deal, distinct, is_listed, plan_jobs, skip_validation
from pipeline.sweeps.sweep import RECORD, SHARED, Sweep, read_shared, shared, sweeps
from pipeline.sweeps.tables import listed, show_plans
from pipeline.table import say_problem, table_console, warn, write_json
from pipeline.tracking.tracker import Tracker, open_sweep_tracker
from stages.contracts import UserError

LOCAL = ("BasicLauncher", "JoblibLauncher")


class StoppedError(BaseException):
    """Carries an error out of a callback, where Hydra turns every Exception into a warning and goes on."""


class SweepStart(Callback):  # type: ignore[misc]
    """Hydra calls it in the process that launches a sweep."""

    begun: Sweep | None = None
    """The sweep that this process launched."""

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """In the process that runs the job: a worker of a launcher must not outlive it."""
        if SweepStart.begun is None and config.hydra.mode == RunMode.MULTIRUN and is_local(config):
            ending.end_with_parent()

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Before Hydra makes the folder of a single job."""
        try:
            _check_runs(config)
        except UserError as error:
            raise StoppedError from error

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        try:
            _check_runs(config)
            SweepStart.begun = begin(config, table_console())
        except Exception as error:
            raise StoppedError from error


def _check_runs(config: DictConfig) -> None:
    """Without a name, `runs` would be the root of the file system."""
    if not str(config.runs).strip():
        raise UserError("expected the name of a folder, got nothing", "runs")


def begin(master: DictConfig, console: Console) -> Sweep:
    """Raises SystemExit after a dry run, UserError, and HydraException for what cannot be composed."""
    dealt = deal(master) if is_listed(master) else []
    side_by_side = min(parallel(master), len(dealt)) if dealt else parallel(master)
    plans = plan_jobs(master, dealt, side_by_side) if dealt else []
    if twice := sorted({" ".join(line) for line in dealt if dealt.count(line) > 1}):
        warn(f"several jobs are the same: {twice[0]}", console)
    if master.dry_run:
        show_plans(plans, console)
        refused = [(job, preflight.early_problems(job.plan)) for job in plans]
        for job, problems in refused:
            for node, error in problems.items():
                say_problem(f"job {job.job.num}, {node}", error, console)
        sys.exit(1 if any(job.config is None or problems for job, problems in refused) else 0)
    if plans:
        skip_validation()
    folder = Path(master.hydra.sweep.dir).absolute()
    credentials.clean_files(folder, "multirun.yaml")
    runs = Path(master.runs)
    sweep = Sweep(
        folder=folder,
        command=["python", "-m", "pipeline", *sys.argv[1:]],
        cwd=os.getcwd(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        process=this_process(),
        cache=str(master.cache.folder),
        parallel=side_by_side,
        continues=_unfinished(runs, plans),
        jobs=[item.job for item in plans],
    )
    if (folder / RECORD).exists():
        sweep = _again(sweep, Sweep.read(folder))
    config = next((item.config for item in plans if item.config), None)
    if config is None or not is_local(master):
        sweep.write()
        _tell(sweep, plans, console)
        return sweep
    # opened even if nothing is to run: a server that is away stops the sweep here, before its jobs
    about = {"sweep": sweep.id, "family": config.model.family}
    tracker = open_sweep_tracker(config.tracking, runs, sweep.id, about, lambda line: warn(line, console))
    sweep.write()
    _tell(sweep, plans, console)
    run_shared(sweep, plans, tracker, console)
    return sweep


def parallel(master: Any) -> int:
    """How many jobs share this machine; 0: they run on machines of their own."""
    if not is_local(master):
        return 0
    asked = int(master.hydra.launcher.get("n_jobs", 1))
    if asked == 0 or asked > cpu.most_threads():
        raise UserError(
            f"expected 1 to {cpu.most_threads()} jobs side by side, or -1 for one a core, got {asked}",
            "hydra.launcher.n_jobs",
        )
    return asked if asked > 0 else cpu.cores()


def is_local(master: Any) -> bool:
    return str(master.hydra.launcher._target_).endswith(LOCAL)


def settled(plan: Plan, done: Mapping[str, Mapping[str, Any]], stores: Stores) -> Plan:
    """The plan of a job after its sweep's shared stages: what was to be made again has been, once for all jobs."""
    return {
        name: replace(item, status="hit", entry=entry, replace=False)
        if item.replace and done.get(item.fingerprint, {}).get("status") == "done"
        and (entry := stores.for_stage(item.spec).find(item.node.stage, item.fingerprint))
        else item
        for name, item in plan.items()
    }  # fmt: skip


def failures(folder: Path) -> dict[str, str]:
    """{fingerprint: why} of shared stages that failed, so that no job tries them again."""
    return {key: it["error"] for key, it in read_shared(folder).items() if it["status"] == "failed"}


def run_shared(sweep: Sweep, plans: Sequence[JobPlan], tracker: Tracker, console: Console) -> None:
    """Brings in the models and the data, checks every job with them, and runs what several jobs would else wait for
    each other to make; with all the machine's threads, if the jobs do not set a number.

    Raises UserError where no job could end well.
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
            tracker.finish({}, all(it["status"] != "failed" for it in work.told.values()))
        except UserError as lost:
            warn(f"tracking: {lost}", console)


@dataclass
class SharedWork:
    """What a sweep does before its first job."""

    sweep: Sweep
    plans: Sequence[JobPlan]
    tracker: Tracker
    console: Console
    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By fingerprint: what became of it."""
    made: dict[str, Entry] = field(default_factory=dict)
    """By fingerprint."""

    def run(self, wanted: Callable[[Planned], bool]) -> None:
        """Runs those of all jobs' nodes that are `wanted` and not stored, each once."""
        waiting = {key: it for key, it in distinct(self.plans).items() if wanted(it) and self._waits(it)}
        if not waiting:
            return
        self.console.print(f"[bold]shared stages first[/]: {listed([it.node.name for it in waiting.values()])}")
        for job in self.plans:
            part = {name: it for name, it in self._now(job.plan).items() if wanted(it) and it.status != "unneeded"}
            if job.config is None or not any(it.fingerprint in waiting and self._waits(it) for it in part.values()):
                continue
            config = job.config.model_copy(update={"threads": job.threads or cpu.cores()})
            stores = Stores.of(config)
            outcomes: Outcomes = {}
            known = {key: str(it["error"]) for key, it in self.told.items() if it["status"] == "failed"}
            try:
                run_plan(part, config, stores, self.tracker, self.console, self.sweep.folder, True, outcomes, known)
            finally:
                for name, outcome in outcomes.items():
                    if part[name].status == "run" and outcome.fingerprint not in self.told:
                        self.told[outcome.fingerprint] = {"node": name, **asdict(outcome)}
                write_json(self.told, self.sweep.folder / SHARED)
            for outcome in outcomes.values():
                if entry := _stored(outcome, part, stores):
                    self.made[outcome.fingerprint] = entry

    def check(self) -> None:
        """Says which jobs could not end well. Raises UserError if none could."""
        broken: dict[int, str] = {}
        for job in self.plans:
            if job.config is None:
                continue
            plan = self._now(job.plan)
            entries = {name: it.entry for name, it in plan.items() if it.entry and it.status == "hit"}
            if found := preflight.problems(plan, entries, job.config.device):
                name, error = next(iter(found.items()))
                broken[job.job.num] = f"job {job.job.num} ({job.job.name}) cannot end well: {name}: {error}"
        if broken and len(broken) == sum(job.config is not None for job in self.plans):
            raise UserError(f"no job of this sweep can end well; {next(iter(broken.values()))}")
        for line in broken.values():
            warn(line, self.console)

    def _now(self, plan: Plan) -> Plan:
        """The plan of a job with what has been made since."""
        return {
            name: replace(item, status="hit", entry=self.made[item.fingerprint], replace=False)
            if item.fingerprint in self.made
            else item
            for name, item in plan.items()
        }

    def _waits(self, item: Planned) -> bool:
        return item.status == "run" and item.fingerprint not in self.told


def _stored(outcome: Outcome, part: Plan, stores: Stores) -> Entry | None:
    if outcome.status not in ("done", "hit"):
        return None
    spec = next(item.spec for item in part.values() if item.fingerprint == outcome.fingerprint)
    return stores.for_stage(spec).find(outcome.stage, outcome.fingerprint)


def _again(sweep: Sweep, there: Sweep) -> Sweep:
    """A folder that holds a sweep already goes on with the same one."""
    if [job.overrides for job in there.jobs] != [job.overrides for job in sweep.jobs]:
        raise UserError(f"{sweep.folder} holds another sweep; choose a new folder", "hydra.sweep.dir")
    if there.alive and there.process != sweep.process:
        raise UserError(f"the sweep in {sweep.folder} is running ({there.process})", "hydra.sweep.dir")
    return replace(sweep, command=there.command, cwd=there.cwd, continues=there.continues)


def _unfinished(runs: Path, plans: Sequence[JobPlan]) -> str:
    """The newest sweep of the same jobs, if some of them did not end well."""
    asked = [item.job.overrides for item in plans]
    for known in sweeps(runs):
        if asked and [job.overrides for job in known.jobs] == asked:
            done = all(is_done(known.folder / str(job.num)) for job in known.jobs)
            return "" if done or known.alive else known.id
    return ""


def _tell(sweep: Sweep, plans: Sequence[JobPlan], console: Console) -> None:
    if not plans:
        console.print(f"[bold]sweep {sweep.id}[/]: its sweeper chooses the jobs", highlight=False)
        return
    results = distinct(plans).values()
    stored, to_run = (sum(item.status == status for item in results) for status in ("hit", "run"))
    nodes = sum(len(item.plan) for item in plans)
    console.print(
        f"[bold]sweep {sweep.id}[/]: {len(plans)} jobs of {nodes} nodes, {len(results)} distinct: {stored} stored, "
        f"{to_run} to run",
        highlight=False,
    )
    if sweep.continues:
        console.print(
            f"it takes up {sweep.continues}, the same line unfinished: what that made is stored", highlight=False
        )
    console.print(f"from another terminal: python -m pipeline.sweeps watch {sweep.id}", highlight=False)
