"""Checks a composed configuration, plans the job, and runs it or shows the plan (dry run)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import to_absolute_path
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from pipeline import credentials, ending, preflight
from pipeline.command.errors import JobFailedError
from pipeline.estimating.estimates import of_plan
from pipeline.located import changed
from pipeline.plan import Plan, Stores, make_plan
from pipeline.recipes import build
from pipeline.resolve import resolve
from pipeline.schema import Config, parse
from pipeline.sweeps.launchers import WORKERS
from pipeline.table import say_problem, show_plan, show_warnings, table_console, warn
from stages.contracts import UserError
from stages.options import Located


@dataclass(frozen=True)
class PlannedJob:
    """A job with its plan, before it runs."""

    config: Config
    """The resolved configuration."""
    stores: Stores
    plan: Plan
    folder: Path
    """The folder of its record."""
    overrides: list[str]
    choices: dict[str, str]
    """Group -> option, as composed."""
    num: int = 0
    """Its number in its sweep."""


def run_job(composed: DictConfig) -> float | None:
    """Plans and runs one job, single or of a sweep. Returns its main quality, for sweepers that search. Raises
    JobFailedError or UserError."""
    console = table_console()
    hydra = HydraConfig.get()
    multirun = hydra.mode == RunMode.MULTIRUN
    parsed = parse(OmegaConf.to_container(composed, resolve=True))  # type: ignore[arg-type]
    if parsed.dry_run and multirun:
        raise UserError("the jobs of this sweeper are not known beforehand; leave out hydra/sweeper", "dry_run")
    sweep = None
    if multirun:
        from pipeline.sweeps.join import sweep_of_this_job  # not needed for a dry run

        sweep = sweep_of_this_job(parsed.cache.folder)
        ending.listen()
        if hydra.launcher._target_.endswith(WORKERS):
            ending.end_with_parent()
    config = resolve(_with_paths(parsed), max(sweep.parallel, 1) if sweep else 1)
    job = plan_job(config, hydra, Path(hydra.runtime.output_dir), hydra.job.num if sweep else 0)
    if config.dry_run:
        _show(job, console)
        return None
    from pipeline.command.running import run  # not needed for a dry run

    return run(job, sweep, console)


def plan_job(config: Config, hydra: Any, folder: Path, num: int = 0) -> PlannedJob:
    """Plans a job. `config` is resolved; `hydra` is Hydra's own section of the composed configuration."""
    stores = Stores.of(config)
    choices = {
        group: str(option)
        for group, option in hydra.runtime.choices.items()
        if option is not None and not group.startswith(("hydra/", "tracking"))
    }
    plan = make_plan(config, build(config), stores)
    return PlannedJob(config, stores, plan, folder, list(hydra.overrides.task), choices, num)


def _show(job: PlannedJob, console: Console) -> None:
    """Shows the plan and its estimate. Raises JobFailedError for a job that is known to fail."""
    estimates = of_plan(job.plan, job.config, job.stores)
    show_plan(job.plan, estimates, console)
    show_warnings(job.plan, console)
    for line in preflight.too_little(job.plan, estimates, job.stores):
        warn(str(line), console)
    if refused := preflight.early_problems(job.plan, job.config.device):
        for node, error in refused.items():
            say_problem(node, error, console)
        raise JobFailedError


def _with_paths(config: Config) -> Config:
    """Returns the configuration with the tracking address free of credentials and, with `hydra.job.chdir`, with folders
    relative to the directory where the command was typed."""
    found = config.model_copy(
        update={"tracking": config.tracking.model_copy(update={"uri": credentials.withdraw(config.tracking.uri)})}
    )
    if not HydraConfig.get().job.chdir:
        return found

    def absolute(located: Located, _: tuple[str, ...]) -> dict[str, str]:
        here = Path(to_absolute_path(located.path))
        return {"path": str(here)} if here.exists() else {}  # else a hub id or a package

    return changed(found, absolute).model_copy(
        update={
            "runs": to_absolute_path(config.runs),
            "cache": config.cache.model_copy(update={"folder": to_absolute_path(config.cache.folder)}),
        }
    )
