"""Runs a sweep from its command line to its end: jobs are planned, shared results made, then the launcher runs the
jobs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import TaskFunction
from omegaconf import DictConfig
from rich.console import Console

from pipeline import preflight
from pipeline.command.errors import EXPECTED, JobFailedError, explain
from pipeline.ending import Ending
from pipeline.record.status import Status
from pipeline.record.sweep import end
from pipeline.sweeps import state as sweep_state
from pipeline.sweeps.launchers import parallel
from pipeline.sweeps.plan import JobPlan, expand_overrides, plan_jobs, repetitions
from pipeline.sweeps.tables import show_end, show_plans
from pipeline.table import say_problem, table_console, warn
from stages.contracts import UserError


@dataclass
class ReportedJob:
    """Function that the launcher calls for each job. A failed job says why at once; the others continue."""

    task: TaskFunction

    def __call__(self, composed: DictConfig) -> Any:
        try:
            return self.task(composed)
        except EXPECTED as error:
            print(f"squarehead: job {HydraConfig.get().job.num}: {explain(error)}", file=sys.stderr)
            raise JobFailedError from None


def run_sweep(
    asked: Sequence[str], master: DictConfig, loader: ConfigLoader, launcher: Launcher, batch: int | None
) -> list[JobReturn]:
    """Runs a sweep. Raises JobFailedError if not all jobs are done at the end, UserError, and HydraException for
    overrides that name no option; in the last two cases nothing runs."""
    console = table_console()
    jobs = expand_overrides(asked, master, loader)
    if batch is not None and batch < 1:
        raise UserError(f"expected at least 1 job at a time, got {batch}", "hydra.sweeper.max_batch_size")
    side_by_side = min(parallel(master.hydra), len(jobs))
    plans = plan_jobs(master, loader, jobs, side_by_side)
    if repeated := repetitions(plans):
        warn(repeated, console)
    if master.dry_run:
        _show(plans, side_by_side > 0, console)
        return []
    from pipeline.sweeps.begin import begin  # not needed for a dry run

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
    show_end(state, Path(master.runs), console)
    if state.status != Status.DONE or any(job.status == JobStatus.FAILED for job in returns):
        raise JobFailedError
    return returns


def _show(plans: Sequence[JobPlan], here: bool, console: Console) -> None:
    """Shows the plans. Raises JobFailedError for jobs that are known to fail; `here` means that they run on this
    machine."""
    show_plans(plans, console)
    problems = {
        job.job.num: preflight.early_problems(job.plan, job.config.device if job.config and here else "")
        for job in plans
    }
    for num, refused in problems.items():
        for node, error in refused.items():
            say_problem(f"job {num}, {node}", error, console)
    if any(problems.values()) or any(job.config is None for job in plans):
        raise JobFailedError
