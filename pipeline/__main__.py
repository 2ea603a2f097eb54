"""`python -m pipeline [group=option] [key=value]`: compose, plan, run, table."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NoReturn

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape

from pipeline import credentials, ending, os_errors, preflight
from pipeline.credentials import public
from pipeline.ending import Ending
from pipeline.estimating.estimates import of_plan
from pipeline.failures import explain
from pipeline.headline import headline, main_metric
from pipeline.job import SUMMARY, Job, is_done, read_summary, went_well
from pipeline.plan import Plan, Stores, make_plan
from pipeline.recipes import build
from pipeline.reporting import plots
from pipeline.resolve import resolve
from pipeline.run import Outcomes, run_plan
from pipeline.schema import Config, parse
from pipeline.sweeps import state as sweep_state
from pipeline.sweeps.plan import sweep_job
from pipeline.sweeps.start import StoppedError, SweepStart, failures, settled
from pipeline.sweeps.sweep import Sweep, add_job, dials, end, name_of, read_shared
from pipeline.sweeps.tables import show_end, show_job_end
from pipeline.table import (
    say_problem,
    show_benchmark,
    show_outcomes,
    show_plan,
    show_quality,
    show_warnings,
    summary,
    table_console,
    warn,
    write_json,
)
from pipeline.tracking.tracker import open_tracker
from stages.contracts import UserError

OmegaConf.register_new_resolver("either", lambda condition, one, other: one if condition else other, replace=True)
"""For Hydra's own section: a dry run makes no folders."""
CONF = str(Path(__file__).resolve().parent.parent / "conf")


class JobFailedError(Exception):
    """Some node failed; everything about it has been said."""


def run_job(composed: DictConfig) -> float | None:
    """One job, single or of a sweep; its main quality, for sweepers that search. Raises JobFailedError or UserError."""
    hydra_config = HydraConfig.get()
    console = table_console()
    folder = Path(hydra_config.runtime.output_dir)
    multirun = hydra_config.mode == RunMode.MULTIRUN
    sweep = Sweep.read(Path(hydra_config.sweep.dir).absolute()) if multirun else None
    threads_among = max(sweep.parallel, 1) if sweep else 1
    parsed = parse(OmegaConf.to_container(composed, resolve=True))  # type: ignore[arg-type]
    tracking = parsed.tracking.model_copy(update={"uri": credentials.withdraw(parsed.tracking.uri)})
    config = resolve(parsed.model_copy(update={"tracking": tracking}), threads_among)
    graph = build(config)
    stores = Stores.of(config)
    plan = make_plan(config, graph, stores)
    if config.dry_run:
        show_plan(plan, of_plan(plan, config, stores), console)
        show_warnings(plan, console)
        for line in preflight.shortages(plan, {}, config, stores):
            warn(str(line), console)
        if refused := preflight.early_problems(plan):
            for node, error in refused.items():
                say_problem(node, error, console)
            raise JobFailedError
        return None
    credentials.clean_files(folder, ".hydra/*.yaml")
    if multirun:
        ending.listen()
    if sweep:
        sweep = _with_job(sweep, hydra_config, plan)
    job = _job(config, hydra_config, sweep)
    if sweep:
        if is_done(folder):
            console.print(f"[cyan]job {hydra_config.job.num}[/] {escape(job.name)}: done before", highlight=False)
            return _quality(folder)
        console.print(f"[bold]job {hydra_config.job.num}[/] {escape(job.name)}", highlight=False)
        plan = settled(plan, read_shared(sweep.folder), stores)
    (folder / SUMMARY).unlink(missing_ok=True)  # of an earlier attempt
    write_json({"nodes": {name: item.as_json() for name, item in plan.items()}}, folder / "plan.json")
    show_warnings(plan, console)
    if threads_among > 1 and config.benchmark.enabled:
        warn("jobs run side by side: their benchmarks disturb each other", console)
    _run(job, config, plan, stores, console, bars=threads_among == 1, failed=failures(sweep.folder) if sweep else {})
    return _quality(folder)


def _quality(folder: Path) -> float | None:
    nodes = read_summary(folder)
    return headline(nodes).get(main_metric(nodes))


def _with_job(sweep: Sweep, hydra_config: Any, plan: Plan) -> Sweep:
    """The sweep's record with this job, which a sweeper that searches thought of only now."""
    num = hydra_config.job.num
    if sweep.job(num):
        return sweep
    return add_job(sweep.folder, sweep_job(num, list(hydra_config.overrides.task), sweep.command, plan))


def _job(config: Config, hydra_config: Any, sweep: Sweep | None) -> Job:
    planned = sweep.job(hydra_config.job.num) if sweep else None
    chosen = planned.dials if planned else dials(list(hydra_config.overrides.task))
    return Job(
        name=name_of(chosen),
        sweep=sweep.id if sweep else "",
        folder=Path(hydra_config.runtime.output_dir),
        config=config.model_dump(mode="json"),
        dials=chosen,
        choices={
            group: str(option)
            for group, option in hydra_config.runtime.choices.items()
            if option is not None and not group.startswith(("hydra/", "tracking"))
        },
    )


def _run(
    job: Job, config: Config, plan: Plan, stores: Stores, console: Console, bars: bool, failed: Mapping[str, str]
) -> None:
    folder = job.folder
    tracker = open_tracker(config.tracking, Path(config.runs), job, config.threads, lambda line: warn(line, console))
    outcomes: Outcomes = {}
    ok = False
    try:
        run_plan(plan, config, stores, tracker, console, folder, bars, outcomes, failed)
        ok = went_well(summary(outcomes))
    finally:
        try:
            write_json(summary(outcomes), folder / SUMMARY)
        except OSError as error:  # MLflow and the terminal can still be told
            ok = False
            refused = os_errors.of_this_line(error)
            console.print(f"[red]✗ record[/]: {escape(str(refused))}", highlight=False, soft_wrap=True)
        measured = any(it.status == "done" and it.stage in ("evaluate", "benchmark") for it in outcomes.values())
        # of a sweep's jobs only those that bring something new: it takes as long as all the rest of a stored one
        plot = _plot(outcomes, stores, folder, console) if measured or not job.sweep else None
        try:
            tracker.finish(summary(outcomes), ok)
        except UserError as lost:
            ok = False
            console.print(f"[red]✗ tracking[/]: {escape(str(lost))}", highlight=False, soft_wrap=True)
    if job.sweep:
        show_job_end(job.name, summary(outcomes), console)
    else:
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


def _plot(outcomes: Outcomes, stores: Stores, folder: Path, console: Console) -> Path | None:
    try:
        return plots.quality_speed(folder, stores.runs.root.parent)
    except Exception as error:  # a picture that fails must not cost the record of what was measured
        warn(f"no plot of quality and speed: {type(error).__name__}: {error}", console)
        return None


def main() -> None:
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here as exceptions; one line is made of them below
    if yaml.__with_libyaml__:  # which OmegaConf does not ask for; Hydra reads every file anew for every job
        yaml.SafeLoader = yaml.CSafeLoader  # type: ignore[misc,assignment]
    sys.argv[1:] = credentials.withdraw_from(sys.argv[1:])
    ending.listen()
    failed: list[JobFailedError | UserError] = []

    def job(composed: DictConfig) -> float | None:
        try:
            return run_job(composed)
        except OSError as error:
            refused = os_errors.of_this_line(error)
            failed.append(refused)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                print(f"squarehead: job {HydraConfig.get().job.num}: {refused}", file=sys.stderr)
            return None
        except (JobFailedError, UserError) as error:
            failed.append(error)  # raised, it would come out with a line of Hydra's before it
            if isinstance(error, UserError) and HydraConfig.get().mode == RunMode.MULTIRUN:  # the other jobs go on
                print(f"squarehead: job {HydraConfig.get().job.num}: {error}", file=sys.stderr)
            return None
        except (HydraException, OmegaConfBaseException):
            raise
        except Exception as error:  # a bug: the other jobs go on
            if composed.dry_run:
                raise
            hydra_config = HydraConfig.get()
            which = f"job {hydra_config.job.num}" if hydra_config.mode == RunMode.MULTIRUN else "job"
            line = explain(error, "job", Path(hydra_config.runtime.output_dir))
            print(f"squarehead: {which}: {line}; finished stages are stored", file=sys.stderr)
            failed.append(JobFailedError())
            return None

    try:
        try:
            credentials.refuse_elsewhere(sys.argv[1:])
            hydra.main(version_base="1.3", config_path=CONF, config_name="config")(job)()
        except StoppedError as stopped:
            raise stopped.__cause__ or stopped from None
    except UserError as error:
        sys.exit(f"squarehead: {public(str(error))}")
    except OSError as error:
        sys.exit(f"squarehead: {public(str(os_errors.of_this_line(error)))}")
    except OverrideParseException as error:
        quoted = """quote a value that holds = or other signs: 'key="value"'"""
        sys.exit(f"squarehead: {public(str(error.override))}: not in the form key=value ({quoted})")
    except (HydraException, OmegaConfBaseException) as error:
        first = public(str(error).strip().splitlines()[0])
        sys.exit(f"squarehead: {first} (python -m pipeline --help lists groups and options)")
    except BrokenProcessPool:
        if Ending.asked:
            _interrupted()
        print(
            "squarehead: a worker of the launcher was killed, as systems do when memory runs out, and the others with "
            "it; finished stages are stored, the same line continues",
            file=sys.stderr,
        )
        failed.append(JobFailedError())
    except KeyboardInterrupt:
        _interrupted()
    if SweepStart.begun:
        state = sweep_state.read(end(SweepStart.begun.folder))
        show_end(state, table_console())
        sys.exit(0 if state.status == "done" and not failed else 1)
    if failed:
        sys.exit(1 if isinstance(failed[0], JobFailedError) else f"squarehead: {public(str(failed[0]))}")


def _interrupted() -> NoReturn:
    how = "terminated" if Ending.asked else "interrupted"
    print(f"squarehead: {how}; finished stages are stored, the same line continues", file=sys.stderr)
    sys.exit(ending.EXIT_CODE if Ending.asked else 1)


if __name__ == "__main__":
    main()
