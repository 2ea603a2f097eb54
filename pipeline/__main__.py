"""`python -m pipeline [group=option] [key=value]`: compose, plan, run, table."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from pipeline.contracts import UserError
from pipeline.environment import cores
from pipeline.graph import build, resolve
from pipeline.plan import Stores, make_plan
from pipeline.table import show_outcomes, show_plan, show_quality, show_warnings, summary, write_json
from pipeline.table import show_benchmark as show_speed
from pipeline.schema import Config, parse

CONF = str(Path(__file__).resolve().parent.parent / "conf")


class JobFailed(Exception):
    """Some node failed; everything about it has been said."""


def run_job(composed: DictConfig) -> None:
    """One job, single or of a sweep. Raises JobFailed or UserError."""
    hydra_config = HydraConfig.get()
    jobs = _parallel_jobs(hydra_config)
    console = Console(soft_wrap=False)
    try:
        config = resolve(parse(OmegaConf.to_container(composed, resolve=True)), jobs)  # type: ignore[arg-type]
        graph = build(config)
        stores = Stores.of(config)
        plan = make_plan(config, graph, stores)
    except UserError as error:
        if hydra_config.mode == RunMode.MULTIRUN:  # the other jobs go on, so say it now
            console.print(f"[red]✗ job {hydra_config.job.num}[/]: {error}", highlight=False, soft_wrap=True)
            raise JobFailed from None
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
    config: Config, plan: Any, stores: Stores, folder: Path, console: Console, hydra_config: Any, bars: bool
) -> None:
    # before torch is first imported: it reads its thread count once
    os.environ["OMP_NUM_THREADS"] = str(config.threads)
    from pipeline.run import run_plan
    from pipeline.tracking import Job, open_tracker

    sweep = Path(hydra_config.sweep.dir).name if hydra_config.mode == RunMode.MULTIRUN else ""
    dials = _dials(hydra_config)
    name = " ".join(f"{key}={value}" for key, value in dials.items()) or "defaults"
    job = Job(name=name, sweep=sweep, folder=folder, config=config.model_dump(mode="json"), dials=dials)
    tracker = open_tracker(config.tracking, Path(config.runs), job, config.threads)
    ok = False
    outcomes: Any = {}
    try:
        outcomes = run_plan(plan, config, stores, tracker, console, folder, bars)
        ok = all(outcome.status not in ("failed", "not run") for outcome in outcomes.values())
    finally:
        write_json(summary(outcomes), folder / "summary.json")
        tracker.finish(summary(outcomes), ok)
    show_outcomes(outcomes, console)
    show_quality(outcomes, console)
    show_speed(outcomes, stores.runs, console)
    console.print(f"artifacts  {stores.runs.root}\nrecord     {folder / 'summary.json'}", highlight=False)
    if config.tracking.enabled:
        console.print("dashboard  make dashboard", highlight=False)
    if not ok:
        raise JobFailed


def _parallel_jobs(hydra_config: Any) -> int:
    """How many jobs of a sweep share this machine."""
    if hydra_config.mode != RunMode.MULTIRUN:
        return 1
    if not str(hydra_config.launcher._target_).endswith("JoblibLauncher"):
        return 1
    asked = int(hydra_config.launcher.n_jobs)
    return asked if asked > 0 else cores()


def _dials(hydra_config: Any) -> dict[str, str]:
    """The overrides that make this job what it is: of a sweep, those that differ among its jobs."""
    given = dict(override.split("=", 1) for override in hydra_config.overrides.task if "=" in override)
    if hydra_config.mode != RunMode.MULTIRUN:
        return given
    record = Path(hydra_config.sweep.dir) / "multirun.yaml"
    asked = OmegaConf.load(record).hydra.overrides.task if record.exists() else []
    swept = {override.split("=", 1)[0] for override in asked if override not in hydra_config.overrides.task}
    return {key: value for key, value in given.items() if key in swept} or given


def main() -> None:
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here as exceptions; one line is made of them below
    try:
        hydra.main(version_base="1.3", config_path=CONF, config_name="config")(run_job)()
    except JobFailed:
        sys.exit(1)
    except UserError as error:
        sys.exit(f"squarehead: {error}")
    except (HydraException, OmegaConfBaseException) as error:
        first = str(error).strip().splitlines()[0]
        sys.exit(f"squarehead: {first} (python -m pipeline --help lists groups and options)")
    except KeyboardInterrupt:
        sys.exit("squarehead: interrupted; finished stages are stored, the same line continues")


if __name__ == "__main__":
    main()
