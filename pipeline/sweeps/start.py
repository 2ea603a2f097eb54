"""What happens before the first job of a sweep: every job is planned, the record is written, shared stages run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console

from pipeline import cpu
from pipeline.contracts import UserError
from pipeline.job import is_done
from pipeline.plan import Plan, Stores
from pipeline.process import this_process
from pipeline.run import Outcome, Outcomes, run_plan
from pipeline.store.store import Entry
from pipeline.sweeps.plan import JobPlan, deal, distinct, is_listed, plan_jobs, skip_validation
from pipeline.sweeps.sweep import RECORD, SHARED, Sweep, read_shared, shared, sweeps
from pipeline.sweeps.tables import listed, show_plans
from pipeline.table import table_console, warn, write_json
from pipeline.tracking.tracker import Tracker, open_sweep_tracker

LOCAL = ("BasicLauncher", "JoblibLauncher")


class StoppedError(BaseException):
    """Carries an error out of a callback, where Hydra turns every Exception into a warning and goes on."""


class SweepStart(Callback):  # type: ignore[misc]
    """Hydra calls it in the process that launches a sweep."""

    begun: Sweep | None = None
    """The sweep that this process launched."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        try:
            SweepStart.begun = begin(config, table_console())
        except Exception as error:
            raise StoppedError from error


def begin(master: DictConfig, console: Console) -> Sweep:
    """Raises SystemExit after a dry run, UserError, and HydraException for what cannot be composed."""
    dealt = deal(master) if is_listed(master) else []
    side_by_side = min(parallel(master), len(dealt)) if dealt else parallel(master)
    plans = plan_jobs(master, dealt, side_by_side) if dealt else []
    if master.dry_run:
        show_plans(plans, console)
        sys.exit(1 if any(job.config is None for job in plans) else 0)
    if plans:
        skip_validation()
    folder = Path(master.hydra.sweep.dir).absolute()
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
    """Runs, with all the machine's threads unless told otherwise, what several jobs would else wait for each other to
    make."""
    (sweep.folder / SHARED).unlink(missing_ok=True)
    common = shared(sweep.jobs)
    waiting = {key: it for key, it in distinct(plans).items() if key in common and it.status == "run"}
    if not waiting:
        return
    console.print(f"[bold]shared stages first[/]: {listed([it.node.name for it in waiting.values()])}")
    told: dict[str, dict[str, Any]] = {}
    made: dict[str, Entry] = {}
    for job in plans:
        part = {
            name: replace(item, status="hit", entry=made[item.fingerprint], replace=False)
            if item.fingerprint in made
            else item
            for name, item in job.plan.items()
            if item.fingerprint in common and item.status != "unneeded"
        }
        if job.config is None or not any(it.status == "run" and it.fingerprint not in told for it in part.values()):
            continue
        config = job.config.model_copy(update={"threads": job.threads or cpu.cores()})
        stores = Stores.of(config)
        outcomes: Outcomes = {}
        known = {key: str(it["error"]) for key, it in told.items() if it["status"] == "failed"}
        try:
            run_plan(part, config, stores, tracker, console, sweep.folder, True, outcomes, known)
        finally:
            for name, outcome in outcomes.items():
                if part[name].status == "run" and outcome.fingerprint not in told:
                    told[outcome.fingerprint] = {"node": name, **asdict(outcome)}
            write_json(told, sweep.folder / SHARED)
        for outcome in outcomes.values():
            if entry := _stored(outcome, part, stores):
                made[outcome.fingerprint] = entry
    try:
        tracker.finish({}, all(it["status"] != "failed" for it in told.values()))
    except UserError as lost:
        warn(f"tracking: {lost}", console)


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
