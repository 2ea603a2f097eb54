"""Begins a sweep: writes its record, then makes what its jobs share, if they run on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from pipeline.command.running import say_where
from pipeline.credentials import public
from pipeline.plan import Stores
from pipeline.process import this_process
from pipeline.record.job import is_done
from pipeline.record.runs_folder import runs_argument
from pipeline.record.sweep import RECORD, Sweep, sweeps
from pipeline.sweeps.join import new_sweep
from pipeline.sweeps.launchers import is_local
from pipeline.sweeps.plan import JobPlan, counted
from pipeline.sweeps.shared import run_shared
from pipeline.table import warn
from pipeline.tracking.tracker import open_sweep_tracker
from stages.contracts import UserError


def begin(master: DictConfig, plans: Sequence[JobPlan], side_by_side: int, console: Console) -> Sweep:
    """Writes the record of the sweep, and runs what its jobs share if they run on this machine."""
    folder, cache = Path(master.hydra.sweep.dir).absolute(), str(master.cache.folder)
    sweep = new_sweep(folder, cache, side_by_side, this_process(), jobs=[item.job for item in plans])
    sweep = replace(sweep, continues=_unfinished(Path(master.runs), plans))
    if (sweep.folder / RECORD).exists():
        sweep = _again(sweep, Sweep.read(sweep.folder))
    config = next((item.config for item in plans if item.config), None)
    tracker = None
    if config:
        say_where(Stores.of(config), console)
    if config and is_local(master.hydra):
        # opened even if nothing is to run: a server that is away stops the sweep here, before its jobs
        about = {"sweep": sweep.id, "family": config.model.family}
        stores = Stores.of(config)
        tracker = open_sweep_tracker(config.tracking, sweep.id, stores, about, lambda line: warn(line, console))
    sweep.write()
    (sweep.folder / "multirun.yaml").write_text(public(OmegaConf.to_yaml(master)), encoding="utf-8")
    _announce(sweep, plans, Path(master.runs), console)
    if tracker:
        run_shared(sweep, plans, tracker, console)
    return sweep


def _again(sweep: Sweep, there: Sweep) -> Sweep:
    """Continues the sweep that the folder already holds."""
    if [job.overrides for job in there.jobs] != [job.overrides for job in sweep.jobs]:
        raise UserError(f"{sweep.folder} holds another sweep; choose a new folder", "hydra.sweep.dir")
    if there.alive and there.process != sweep.process:
        raise UserError(f"the sweep in {sweep.folder} is running ({there.process})", "hydra.sweep.dir")
    return replace(sweep, command=there.command, cwd=there.cwd, continues=there.continues)


def _unfinished(runs: Path, plans: Sequence[JobPlan]) -> str:
    """Returns the newest sweep of the same jobs, if some of them did not end well."""
    asked = [item.job.overrides for item in plans]
    for known in sweeps(runs):
        if asked and [job.overrides for job in known.jobs] == asked:
            done = all(is_done(known.folder / str(job.num)) for job in known.jobs)
            return "" if done or known.alive else known.id
    return ""


def _announce(sweep: Sweep, plans: Sequence[JobPlan], runs: Path, console: Console) -> None:
    console.print(f"[bold]sweep {sweep.id}[/]: {counted(plans)}", highlight=False)
    if sweep.continues:
        console.print(
            f"it continues {sweep.continues}, the same command unfinished; its results are stored", highlight=False
        )
    watching = f"python -m pipeline.sweeps{runs_argument(runs)} watch {sweep.id}"
    console.print(f"from another terminal: {watching}", highlight=False, markup=False, soft_wrap=True)
