"""`python -m pipeline.sweeps ls|show|watch|retry-failed`: lists, shows, watches and retries sweeps."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pipeline.record.job import SUMMARY
from pipeline.record.outcome import is_damaged
from pipeline.record.runs_folder import default_runs
from pipeline.record.status import Status
from pipeline.record.sweep import SHARED, Sweep, records, sweeps
from pipeline.sweeps.state import RETRIED, read
from pipeline.sweeps.tables import show_jobs, sweeps_table
from pipeline.sweeps.watch import wait_for_sweep, watch
from pipeline.table import table_console
from stages.contracts import UserError

PROGRAM = ("-m", "pipeline")
EXIT_CODES = (
    "exit code: 0; 1 if a job failed or is missing (show, watch, retry-failed) or a record cannot be read (ls); 2 if "
    "the call was wrong"
)


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    console = table_console()
    try:
        if asked.command == "watch":
            return _watch(asked.runs, asked.id, asked.latest, console)
        if not asked.runs.is_dir():
            raise UserError(f"no folder {asked.runs}; give the one that holds sweeps/", "--runs")
        if asked.command == "ls":
            return _ls(asked.runs, console)
        sweep = _find(asked.runs, asked.id)
        if asked.command == "show":
            return _show(sweep, console)
        return _retry(sweep, asked.runs, console)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline.sweeps", description=__doc__, epilog=EXIT_CODES)
    parser.add_argument(
        "--runs",
        type=Path,
        default=default_runs(),
        help="folder of runs (%(default)s)",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("ls", help="list the sweeps, the newest first", epilog=EXIT_CODES)
    for name, text in (
        ("show", "the jobs of a sweep: status, quality, why they failed"),
        (
            "watch",
            "the sweep that runs, or the next that begins: the same, with the stages at work and the time left; "
            "ctrl-C only stops watching",
        ),
        ("retry-failed", "run the failed and missing jobs of a sweep again, in its folder and with their own options"),
    ):
        command = commands.add_parser(name, help=text, description=text, epilog=EXIT_CODES)
        command.add_argument("id", nargs="?", default="", help="of the sweep, or how it begins (default: the newest)")
        if name == "watch":
            command.add_argument("--latest", action="store_true", help="the newest sweep, also if it has ended")
    return parser


def _find(runs: Path, begins: str) -> Sweep:
    """Returns the sweep whose id begins so. Raises UserError if there is none, or more than one."""
    known = sweeps(runs)
    if not known:
        raise UserError(f"no sweep under {runs / 'sweeps'}; `make sweep` makes one", "--runs")
    if not begins:
        return known[0]
    found = [sweep for sweep in known if sweep.id.startswith(begins)]
    if len(found) != 1:
        many = ", ".join(sweep.id for sweep in found) or "none; `ls` lists them"
        raise UserError(f"expected one sweep whose id begins with {begins!r}, there is {many}", "ID")
    return found[0]


def _ls(runs: Path, console: Console) -> int:
    states = [read(sweep) for sweep in sweeps(runs)]
    if states:
        console.print(sweeps_table(states))
    lost = [path for path in records(runs) if path.parent not in {state.sweep.folder for state in states}]
    for path in lost:
        console.print(f"[red]✗[/] {path} cannot be read", highlight=False, soft_wrap=True)
    console.print(f"{len(states)} sweeps in {runs / 'sweeps'}", highlight=False)
    return 1 if lost else 0


def _show(sweep: Sweep, console: Console) -> int:
    state = read(sweep)
    show_jobs(state, console)
    console.print(
        f"[bold]sweep {sweep.id}[/]: {state.status.label}; {len(state.nodes)} distinct nodes, {state.executed} "
        "executed here",
        highlight=False,
    )
    console.print(f"command    {shlex.join(sweep.command)}", highlight=False, markup=False, soft_wrap=True)
    damaged = [path for path in (sweep.folder / SHARED, *sweep.folder.glob(f"*/{SUMMARY}")) if is_damaged(path)]
    for path in damaged:
        console.print(f"[red]✗[/] {path} cannot be read, or was changed", highlight=False, soft_wrap=True)
    return 1 if damaged else _exit_code(state.status)


def _watch(runs: Path, begins: str, latest: bool, console: Console) -> int:
    sweep = _find(runs, begins) if begins or latest else wait_for_sweep(runs, console)
    state = watch(sweep, console, until=lambda state: not state.alive)
    return _exit_code(state.status)


def _exit_code(status: Status) -> int:
    return 0 if status in (Status.DONE, Status.RUNNING) else 1


def _retry(sweep: Sweep, runs: Path, console: Console) -> int:
    """Runs the same command into the same folder, which skips the jobs that are done."""
    state = read(sweep)
    if state.alive:
        raise UserError(f"sweep {sweep.id} is running ({sweep.process}); wait for its end, or end it", "ID")
    again = [job for job in state.jobs if job.status in RETRIED]
    if not again:
        console.print(f"nothing to retry in sweep {sweep.id}: all {len(state.jobs)} jobs are done", highlight=False)
        return 0
    for job in again:
        console.print(
            f"retry job {job.job.num} {job.job.name}: {job.status.label} {job.reason}", highlight=False, markup=False
        )
    command = [
        sys.executable,
        *PROGRAM,
        *sweep.command[len(PROGRAM) + 1 :],
        f"hydra.sweep.dir={sweep.folder.absolute()}",
    ]
    variables = {**os.environ, "SQUAREHEAD_RUNS": str(runs.absolute())}
    return subprocess.run(command, cwd=sweep.cwd, env=variables).returncode


if __name__ == "__main__":
    sys.exit(main())
