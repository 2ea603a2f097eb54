"""Runs a planned job: writes its record before and its summary after, and shows the results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from pipeline import credentials
from pipeline.command.errors import JobFailedError, explain
from pipeline.command.job import PlannedJob
from pipeline.plan import MEASUREMENTS, Plan, Stores
from pipeline.record.files import write_json
from pipeline.record.headline import headline
from pipeline.record.job import SUMMARY, Job, is_done
from pipeline.record.outcome import Outcomes, read_outcomes, status_of, write_outcomes
from pipeline.record.runs_folder import runs_argument
from pipeline.record.status import Status
from pipeline.record.sweep import Sweep, name_of, swept_parameters
from pipeline.reporting import plots
from pipeline.run import run_plan
from pipeline.schema import Config
from pipeline.sweeps.join import with_job
from pipeline.sweeps.shared import failures, made_before, with_results
from pipeline.sweeps.tables import show_job_end
from pipeline.table import (
    show_benchmark,
    show_models,
    show_outcomes,
    show_quality,
    show_warnings,
    warn,
)
from pipeline.tracking.tracker import open_tracker
from stages.contracts import UserError
from stages.index import described


def run(planned: PlannedJob, sweep: Sweep | None, console: Console) -> float | None:
    """Runs the job and returns its main quality. Raises JobFailedError if a node failed, and UserError."""
    folder, plan, stores = planned.folder, planned.plan, planned.stores
    credentials.clean_files(folder, ".hydra/*.yaml")
    if sweep:
        sweep = with_job(sweep, planned.num, planned.overrides, plan)
    job = _job(planned, sweep)
    if sweep:
        if is_done(folder):
            console.print(f"[cyan]job {planned.num}[/] {escape(job.name)}: done before", highlight=False)
            return _quality(folder)
        console.print(f"[bold]job {planned.num}[/] {escape(job.name)}", highlight=False)
        plan = with_results(plan, made_before(sweep.folder, stores))
    else:
        say_where(stores, console)
    (folder / SUMMARY).unlink(missing_ok=True)  # left by an earlier attempt
    write_json({"nodes": {name: item.as_json() for name, item in plan.items()}}, folder / "plan.json")
    show_warnings(plan, console)
    side_by_side = sweep is not None and sweep.parallel > 1
    if side_by_side and planned.config.benchmark.enabled:
        warn("jobs run side by side: their benchmarks disturb each other", console)
    failed = failures(sweep.folder) if sweep else {}
    _run(job, planned.config, plan, stores, console, bars=not side_by_side, failed=failed)
    return _quality(folder)


def say_where(stores: Stores, console: Console) -> None:
    """Prints the folder of a first run's results: a relative folder is a different one in each working directory."""
    if not stores.runs.root.exists():
        where = stores.runs.root.parent.absolute()
        console.print(f"runs       {where} (new folder)", highlight=False, markup=False, soft_wrap=True)


def _quality(folder: Path) -> float | None:
    found = headline(read_outcomes(folder / SUMMARY)).quality
    return found.value if found else None


def _job(planned: PlannedJob, sweep: Sweep | None) -> Job:
    listed = sweep.job(planned.num) if sweep else None
    chosen = listed.swept_parameters if listed else swept_parameters(planned.overrides)
    return Job(
        name=name_of(chosen),
        sweep=sweep.id if sweep else "",
        folder=planned.folder,
        config=planned.config.model_dump(mode="json"),
        swept_parameters=chosen,
        choices=planned.choices,
    )


def _run(
    job: Job, config: Config, plan: Plan, stores: Stores, console: Console, bars: bool, failed: Mapping[str, str]
) -> None:
    folder = job.folder
    tracker = open_tracker(config.tracking, job, stores, config.threads, lambda line: warn(line, console))
    outcomes: Outcomes = {}
    ok = False
    try:
        run_plan(plan, config, stores, tracker, console, folder, bars, outcomes, failed)
        ok = status_of(outcomes)[0] == Status.DONE
    finally:
        try:
            write_outcomes(outcomes, folder / SUMMARY)
        except OSError as error:  # MLflow and the terminal can still be written to
            ok = False
            console.print(f"[red]✗ record[/]: {escape(explain(error))}", highlight=False, soft_wrap=True)
        done = [it.stage for it in outcomes.values() if it.status == Status.DONE]
        measured = any(described(stage).makes is kind for stage in done for kind in MEASUREMENTS)
        # only for jobs with new results: plotting costs as much as the rest of a cached job
        plot = _plot(stores, folder, console) if measured or not job.sweep else None
        try:
            tracker.finish(outcomes)
        except UserError as lost:
            ok = False
            console.print(f"[red]✗ tracking[/]: {escape(str(lost))}", highlight=False, soft_wrap=True)
    if job.sweep:
        show_job_end(job.name, outcomes, console)
    else:
        show_outcomes(outcomes, console)
        show_quality(outcomes, console)
        show_benchmark(outcomes, stores.runs, console)
        console.print(f"results    {stores.runs.root}\nrecord     {folder / SUMMARY}", highlight=False)
        if plot:
            console.print(f"plot       {plot}", highlight=False)
        if config.tracking.enabled:
            where = config.tracking.uri or _dashboard(stores.runs.root.parent)
            console.print(f"dashboard  {where}", highlight=False, markup=False, soft_wrap=True)
        show_models(plan, outcomes, stores, console)
    if not ok:
        raise JobFailedError


def _dashboard(runs: Path) -> str:
    other = runs_argument(runs).strip()
    return f'make dashboard ARGS="{other}"' if other else "make dashboard"


def _plot(stores: Stores, folder: Path, console: Console) -> Path | None:
    try:
        return plots.quality_speed(folder, stores.runs.root.parent)
    except Exception as error:  # a picture that fails must not cost the record of what was measured
        warn(f"no plot of quality and speed: {type(error).__name__}: {error}", console)
        return None
