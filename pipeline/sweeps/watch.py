"""Shows a sweep on one screen: its jobs, the running stages with their progress, and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.estimating.estimates import format_duration
from pipeline.record.status import Status
from pipeline.record.sweep import Sweep, sweeps
from pipeline.sweeps.state import SharedOutcome, SweepState, read
from pipeline.sweeps.tables import jobs_table

SECONDS_BETWEEN = 1.0
SILENT_SECONDS = 120.0
"""After this long without a sign a stage on another machine may be dead, which cannot be known from here."""


def watch(sweep: Sweep, console: Console, until: Callable[[SweepState], bool]) -> SweepState:
    """Shows the sweep until `until` returns True for its state, and returns its last state. KeyboardInterrupt ends
    it."""
    state = read(sweep)
    with Live(screen(state), console=console, auto_refresh=False, screen=False) as live:
        while not until(state):
            time.sleep(SECONDS_BETWEEN)
            state = read(Sweep.read(sweep.folder))
            live.update(screen(state), refresh=True)
    return state


def wait_for_sweep(runs: Path, console: Console) -> Sweep:
    """Returns the newest running sweep, or else waits for the next to begin; a sweep takes some seconds to plan its
    jobs."""
    before = {sweep.folder for sweep in sweeps(runs)}
    said = False
    while True:
        known = sweeps(runs)
        if found := next((sweep for sweep in known if sweep.alive or sweep.folder not in before), None):
            return found
        if not said:
            newest = (
                f"; the newest, {known[0].id}, is {read(known[0]).status.label} (--latest shows it)" if known else ""
            )
            console.print(f"waiting for a sweep in {runs / 'sweeps'}{newest}", highlight=False, soft_wrap=True)
            said = True
        time.sleep(SECONDS_BETWEEN)


def screen(state: SweepState) -> Group:
    parts = [_head(state), jobs_table(state)]
    if at_work := [node for node in state.nodes if node.status in (Status.RUNNING, Status.INTERRUPTED)]:
        parts.append(_stages(at_work))
    return Group(*parts)


def _head(state: SweepState) -> Table:
    stored = sum(node.status == Status.HIT for node in state.nodes)
    head = Table.grid(padding=(0, 1))
    seconds, unknown = state.seconds_left()
    left = f"about {format_duration(seconds)} left" if seconds else ""
    if unknown:
        left += f"{' and ' if left else ''}{unknown} stages of kinds not measured yet"
    progress = left if state.alive else state.status.label
    head.add_row(
        Text(f"sweep {state.sweep.id}", style="bold"),
        ProgressBar(total=max(len(state.nodes), 1), completed=stored, width=30),
        f"{stored} of {len(state.nodes)} results, {state.counts[Status.DONE]} of {len(state.jobs)} jobs",
        progress,
    )
    return head


def _stages(nodes: list[SharedOutcome]) -> Table:
    table = Table(title="stages at work", title_justify="left", box=None, pad_edge=False)
    for column in ("stage", "", ""):
        table.add_column(column, no_wrap=True)
    for column in ("", "rate", "left", "running for"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for node in nodes:
        found = node.progress
        assert found is not None, "a running stage has progress"
        bar = ProgressBar(total=found.total, completed=found.done, width=24) if found.total else ""
        shown = "  ".join(f"{name} {value:.4g}" for name, value in found.shown.items())
        notes = [f"for {node.users} jobs"] if node.users > 1 else []
        if node.status == Status.INTERRUPTED:
            notes.append("[red]interrupted[/]; continues from its checkpoint, if it made one")
        elif (silent := time.time() - found.updated) > SILENT_SECONDS:
            notes.append(f"last sign {format_duration(silent)} ago")
        table.add_row(
            node.name,
            found.what,
            bar,
            f"{found.done}/{found.total}" if found.total else "",
            _rate(found.rate, found.unit),
            format_duration(found.seconds_left) if found.seconds_left is not None else "",
            format_duration((time.time() if node.status == Status.RUNNING else found.updated) - found.started),
            "  ".join([shown, *notes]).strip(),
        )
    return table


def _rate(rate: float, unit: str) -> str:
    if not rate:
        return ""
    return f"{rate:.3g} {unit}/s" if rate >= 1 else f"{1 / rate:.3g} s/{unit}"
