"""Connects a job with the record of its sweep. If another sweeper chooses the jobs on the way, the first job begins the
record and each adds itself."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock
from hydra.core.hydra_config import HydraConfig

from pipeline.plan import Plan
from pipeline.process import parent_process, this_process
from pipeline.record.sweep import RECORD, Sweep, SweepJob, add_job
from pipeline.sweeps.launchers import LOCAL, WORKERS, parallel
from pipeline.sweeps.plan import sweep_job


def new_sweep(folder: Path, cache: str, side_by_side: int, process: str, jobs: list[SweepJob]) -> Sweep:
    return Sweep(
        folder=folder,
        command=["python", "-m", "pipeline", *sys.argv[1:]],
        cwd=os.getcwd(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        process=process,
        cache=cache,
        parallel=side_by_side,
        continues="",
        jobs=jobs,
    )


def sweep_of_this_job(cache: str) -> Sweep:
    """Returns the record of the job's sweep; begins it if the sweeper has not."""
    config = HydraConfig.get()
    folder = Path(config.runtime.cwd, config.sweep.dir)
    with FileLock(folder / f"{RECORD}.lock"):
        if not (folder / RECORD).exists():
            new_sweep(folder, cache, parallel(config), _launching_process(config.launcher._target_), jobs=[]).write()
            print(f"sweep {folder.name}: its sweeper chooses the jobs")
    return Sweep.read(folder)


def with_job(sweep: Sweep, num: int, overrides: list[str], plan: Plan) -> Sweep:
    """Returns the record with this job in it."""
    return sweep if sweep.job(num) else add_job(sweep.folder, sweep_job(num, overrides, sweep.command, plan))


def _launching_process(launcher: str) -> str:
    if launcher.endswith(WORKERS):
        return parent_process()
    return this_process() if launcher.endswith(LOCAL) else ""
