"""`python -m pipeline [group=option] [key=value]`: compose, plan, run, table."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from pipeline import cpu, plots
from pipeline.contracts import UserError
from pipeline.graph import build, resolve
from pipeline.job import Job
from pipeline.plan import Plan, Stores, make_plan
from pipeline.run import Outcomes, run_plan
from pipeline.schema import Config, parse
from pipeline.table import (
    show_benchmark,
    show_outcomes,
    show_plan,
    show_quality,
    show_warnings,
    summary,
    table_console,
    write_json,
)
from pipeline.tracking import open_tracker

CONF = str(Path(__file__).resolve().parent.parent / "conf")


class JobFailedError(Exception):
    """Some node failed; everything about it has been said."""


def run_job(composed: DictConfig) -> None:
    """One job, single or of a sweep. Raises JobFailedError or UserError."""
    hydra_config = HydraConfig.get()
    jobs = _parallel_jobs(hydra_config)
    console = table_console()
    try:
        config = resolve(parse(OmegaConf.to_container(composed, resolve=True)), jobs)  # type: ignore[arg-type]
        graph = build(config)
        stores = Stores.of(config)
        plan = make_plan(config, graph, stores)
    except UserError as error:
        if hydra_config.mode == RunMode.MULTIRUN:  # the other jobs go on, so say it now
            console.print(f"[red]✗ job {hydra_config.job.num}[/]: {error}", highlight=False, soft_wrap=True)
            raise JobFailedError from None
        raise
    folder = Path(hydra_config.runtime.output_dir)
    if config.dry_run:
        show_plan(plan, console)
        show_warnings(plan, console)
        return
    write_json({"nodes": {name: item.as_json() for name, item in plan.items()}}, folder / "plan.json")
    show_warnings(plan, console)
    if jobs > 1 and config.benchmark.enabled:
        console.print("[yellow]! jobs run side by side: their benchmarks disturb each other[/]", highlight=False)
    _run(config, plan, stores, folder, console, hydra_config, bars=jobs == 1)


def _run(
    config: Config, plan: Plan, stores: Stores, folder: Path, console: Console, hydra_config: Any, bars: bool
) -> None:
    # before torch is first imported: it reads its thread count once
    os.environ["OMP_NUM_THREADS"] = str(config.threads)

    sweep = Path(hydra_config.sweep.dir).name if hydra_config.mode == RunMode.MULTIRUN else ""
    dials = _dials(hydra_config)
    name = " ".join(f"{key}={value}" for key, value in dials.items()) or "defaults"
    job = Job(name=name, sweep=sweep, folder=folder, config=config.model_dump(mode="json"), dials=dials)
    tracker = open_tracker(
        config.tracking, Path(config.runs), job, config.threads, lambda line: console.print(f"[yellow]! {line}[/]")
    )
    outcomes: Outcomes = {}
    ok = False
    try:
        run_plan(plan, config, stores, tracker, console, folder, bars, outcomes)
        ok = all(outcome.status not in ("failed", "not run") for outcome in outcomes.values())
    finally:
        write_json(summary(outcomes), folder / "summary.json")
        plot = plots.quality_speed(summary(outcomes), stores.runs, folder)
        try:
            tracker.finish(summary(outcomes), ok)
        except UserError as lost:
            ok = False
            console.print(f"[red]✗ tracking[/]: {lost}", highlight=False, soft_wrap=True)
    show_outcomes(outcomes, console)
    show_quality(outcomes, console)
    show_benchmark(outcomes, stores.runs, console)
    console.print(f"artifacts  {stores.runs.root}\nrecord     {folder / 'summary.json'}", highlight=False)
    if plot:
        console.print(f"plot       {plot}", highlight=False)
    if config.tracking.enabled:
        console.print("dashboard  make dashboard", highlight=False)
    if not ok:
        raise JobFailedError


def _parallel_jobs(hydra_config: Any) -> int:
    """How many jobs of a sweep share this machine."""
    if hydra_config.mode != RunMode.MULTIRUN:
        return 1
    if not str(hydra_config.launcher._target_).endswith("JoblibLauncher"):
        return 1
    asked = int(hydra_config.launcher.n_jobs)
    return asked if asked > 0 else cpu.cores()


MECHANICS = ("runs", "dry_run", "until", "force", "cache.", "tracking", "hydra", "threads")
"""Options that say how a job runs, not what it finds out; they do not name it."""


def _dials(hydra_config: Any) -> dict[str, str]:
    """The overrides that make this job what it is: of a sweep, those that differ among its jobs."""
    given = [line for line in hydra_config.overrides.task if not line.lstrip("+~").startswith(MECHANICS)]
    record = Path(hydra_config.sweep.dir) / "multirun.yaml"
    if hydra_config.mode == RunMode.MULTIRUN and record.exists():
        common = OmegaConf.load(record).hydra.overrides.task
        given = [line for line in given if line not in common] or given
    return {key: value for key, _, value in (line.partition("=") for line in given)}


def main() -> None:
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here as exceptions; one line is made of them below
    failed: list[JobFailedError | UserError] = []

    def job(composed: DictConfig) -> None:
        try:
            run_job(composed)
        except (JobFailedError, UserError) as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            failed.append(error)  # raised, it would come out with a line of Hydra's before it

    try:
        hydra.main(version_base="1.3", config_path=CONF, config_name="config")(job)()
    except JobFailedError as error:
        failed.append(error)
    except OverrideParseException as error:
        quoted = """quote a value that holds = or other signs: 'key="value"'"""
        sys.exit(f"squarehead: {error.override}: not in the form key=value ({quoted})")
    except (HydraException, OmegaConfBaseException) as error:
        first = str(error).strip().splitlines()[0]
        sys.exit(f"squarehead: {first} (python -m pipeline --help lists groups and options)")
    except KeyboardInterrupt:
        sys.exit("squarehead: interrupted; finished stages are stored, the same line continues")
    if failed:
        sys.exit(1 if isinstance(failed[0], JobFailedError) else f"squarehead: {failed[0]}")


if __name__ == "__main__":
    main()
