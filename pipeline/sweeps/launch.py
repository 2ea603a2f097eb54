"""A sweep from its command line to its end: jobs are planned, what they share is made, then the launcher has them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import TaskFunction
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from pipeline import ending, preflight
from pipeline.command.errors import EXPECTED, JobFailedError, explain
from pipeline.credentials import public
from pipeline.ending import Ending
from pipeline.job import is_done
from pipeline.process import this_process
from pipeline.sweeps import state as sweep_state
from pipeline.sweeps.join import new_sweep
from pipeline.sweeps.plan import JobPlan, distinct, expand_overrides, plan_jobs
from pipeline.sweeps.shared import is_local, parallel, run_shared
from pipeline.sweeps.sweep import RECORD, Sweep, end, sweeps
from pipeline.sweeps.tables import show_end, show_plans
from pipeline.table import say_problem, table_console, warn
from pipeline.tracking.tracker import open_sweep_tracker
from stages.contracts import UserError


@dataclass
class IsolatedJob:
    """What the launcher calls for each job: one that fails says so, and the others go on."""

    task: TaskFunction

    def __call__(self, composed: DictConfig) -> Any:
        config = HydraConfig.get()
        if config.launcher._target_.endswith(WORKERS):
            ending.end_with_parent()
        try:
            return self.task(composed)
        except JobFailedError:
            return None
        except EXPECTED as error:
            print(f"squarehead: job {config.job.num}: {explain(error)}", file=sys.stderr)
            return None


WORKERS = ".JoblibLauncher"
"""Runs jobs in processes of this machine that must not outlive the launching one."""


def run_sweep(
    asked: Sequence[str], master: DictConfig, loader: ConfigLoader, launcher: Launcher, batch: int | None
) -> list[JobReturn]:
    """Raises JobFailedError if not all jobs are done at the end, UserError, and HydraException for overrides that name
    no option; with those, nothing runs."""
    console = table_console()
    jobs = expand_overrides(asked, master, loader)
    if batch is not None and batch < 1:
        raise UserError(f"expected at least 1 job at a time, got {batch}", "hydra.sweeper.max_batch_size")
    side_by_side = min(parallel(master.hydra), len(jobs))
    plans = plan_jobs(master, loader, jobs, side_by_side)
    if twice := sorted({" ".join(job) for job in jobs if jobs.count(job) > 1}):
        warn(f"several jobs are the same: {twice[0]}", console)
    if master.dry_run:
        _show(plans, console)
        return []
    sweep = begin(master, plans, side_by_side, console)
    size = batch or len(jobs)
    returns: list[JobReturn] = []
    try:
        for first in range(0, len(jobs), size):
            returns += launcher.launch(jobs[first : first + size], initial_job_idx=first)
    except BrokenProcessPool as error:
        if Ending.asked:
            raise KeyboardInterrupt from None
        print(f"squarehead: {explain(error)}", file=sys.stderr)
    state = sweep_state.read(end(sweep.folder))
    show_end(state, console)
    if state.status != "done":
        raise JobFailedError
    return returns


def _show(plans: Sequence[JobPlan], console: Console) -> None:
    """Raises JobFailedError for jobs of which it is known that they cannot end well."""
    show_plans(plans, console)
    problems = {job.job.num: preflight.early_problems(job.plan) for job in plans}
    for num, refused in problems.items():
        for node, error in refused.items():
            say_problem(f"job {num}, {node}", error, console)
    if any(problems.values()) or any(job.config is None for job in plans):
        raise JobFailedError


def begin(master: DictConfig, plans: Sequence[JobPlan], side_by_side: int, console: Console) -> Sweep:
    """Writes the record of the sweep, and runs what its jobs share if they run on this machine."""
    folder, cache = Path(master.hydra.sweep.dir).absolute(), str(master.cache.folder)
    sweep = new_sweep(folder, cache, side_by_side, this_process(), jobs=[item.job for item in plans])
    sweep = replace(sweep, continues=_unfinished(Path(master.runs), plans))
    if (sweep.folder / RECORD).exists():
        sweep = _again(sweep, Sweep.read(sweep.folder))
    config = next((item.config for item in plans if item.config), None)
    tracker = None
    if config and is_local(master.hydra):
        # opened even if nothing is to run: a server that is away stops the sweep here, before its jobs
        about = {"sweep": sweep.id, "family": config.model.family}
        tracker = open_sweep_tracker(
            config.tracking, Path(master.runs), sweep.id, about, lambda line: warn(line, console)
        )
    sweep.write()
    (sweep.folder / "multirun.yaml").write_text(public(OmegaConf.to_yaml(master)), encoding="utf-8")
    _announce(sweep, plans, console)
    if tracker:
        run_shared(sweep, plans, tracker, console)
    return sweep


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


def _announce(sweep: Sweep, plans: Sequence[JobPlan], console: Console) -> None:
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
