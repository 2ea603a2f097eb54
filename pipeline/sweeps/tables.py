"""Tables of sweeps: what the jobs would run, and what became of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.estimating.estimates import format_duration, format_total, of_jobs, total
from pipeline.plan import Planned, Stores
from pipeline.preflight import too_little
from pipeline.record.headline import headline
from pipeline.record.metrics import Metric
from pipeline.record.outcome import Outcomes, status_of
from pipeline.record.runs_folder import runs_argument
from pipeline.record.status import Status
from pipeline.record.sweep import shared
from pipeline.record.text import describe_job, format_value
from pipeline.sweeps.plan import JobPlan, counted, distinct
from pipeline.sweeps.state import SweepState, started
from pipeline.table import warn


def show_plans(plans: Sequence[JobPlan], console: Console) -> None:
    """Prints a row for what jobs share, then one for what each job runs alone. Every result is in one row."""
    results = distinct(plans)
    common = shared([item.job for item in plans])
    table = Table(title="plan of the sweep", title_justify="left", box=None, pad_edge=False)
    table.add_column("job", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("to run", justify="right", no_wrap=True)
    table.add_column("stored", justify="right", no_wrap=True)
    table.add_column("runs", overflow="fold")
    table.add_row("", "[bold]shared by several jobs[/]", *_cells([it for key, it in results.items() if key in common]))
    for item in plans:
        if item.config is None:
            table.add_row(str(item.job.num), escape(item.job.name), "", "", f"[red]fails[/]: {escape(item.job.error)}")
            continue
        own = [planned for planned in item.plan.values() if planned.fingerprint not in common]
        table.add_row(str(item.job.num), escape(item.job.name), *_cells(own))
    console.print(table)
    console.print(counted(plans), highlight=False)
    if any(item.status == Status.TO_RUN for item in results.values()):
        estimates = of_jobs((item.plan, item.config) for item in plans if item.config)
        console.print(format_total(total(estimates.values())), highlight=False, soft_wrap=True)
        stores = next(Stores.of(item.config) for item in plans if item.config)
        for line in too_little(results, estimates, stores):
            warn(str(line), console)
    if warned := list(dict.fromkeys(item.node.name for item in results.values() if item.warning)):
        warning = next(item.warning for item in results.values() if item.warning)
        warn(f"{', '.join(warned)}: {warning}", console)


def _cells(items: Sequence[Planned]) -> tuple[str, str, str]:
    to_run = [item.node.name for item in items if item.status == Status.TO_RUN]
    stored = sum(item.status == Status.HIT for item in items)
    return str(len(to_run)), str(stored), listed(to_run)


def listed(names: Sequence[str]) -> str:
    """Lists names with counts, `dense, prune_50, finetune_50 × 3`: jobs have nodes of the same name and other
    settings."""
    return ", ".join(name + (f" × {count}" if count > 1 else "") for name, count in Counter(names).items())


def show_end(state: SweepState, runs: Path, console: Console) -> None:
    """Prints the jobs and totals of a sweep whose last job has ended."""
    sweep = state.sweep
    console.print()
    show_jobs(state, console)
    nodes = sum(len(job.nodes) for job in sweep.jobs)
    took = format_duration(time.time() - started(sweep).timestamp())
    console.print(
        f"[bold]sweep {sweep.id}[/]: {_counted(state)}; {nodes} nodes, {len(state.nodes)} distinct, {state.executed} "
        f"executed, {state.shared_executed} of them before the jobs that share them; {took}",
        highlight=False,
    )
    if state.status != Status.DONE:
        retrying = f"python -m pipeline.sweeps{runs_argument(runs)} retry-failed {sweep.id}"
        console.print(f"retry      {retrying}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"report     python -m pipeline.report {sweep.folder}", highlight=False, soft_wrap=True)


def show_job_end(name: str, outcomes: Outcomes, console: Console) -> None:
    """Prints one line for a job of a sweep, where a single job prints tables."""
    counts = Counter(outcome.status for outcome in outcomes.values())
    said = [describe_job(headline(outcomes)), *(f"{count} {status.label}" for status, count in counts.items())]
    mark = "[green]✓" if status_of(outcomes)[0] == Status.DONE else "[red]✗"
    console.print(f"{mark} {escape(name)}[/]: {', '.join(filter(None, said))}", highlight=False)


def show_jobs(state: SweepState, console: Console) -> None:
    """Prints the table of the jobs and, below it, why jobs failed."""
    console.print(jobs_table(state))
    for job in state.jobs:
        if job.reason:
            console.print(f"[red]✗ job {job.job.num}[/]: {escape(job.reason)}", highlight=False, soft_wrap=True)


def jobs_table(state: SweepState) -> Table:
    """Tabulates jobs with their status, their number of stored results, and their headline."""
    quality = next((job.headline.quality.name for job in state.jobs if job.headline.quality), "quality")
    table = Table(box=None, pad_edge=False)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("job", overflow="fold")
    table.add_column("", no_wrap=True)
    for column in ("stored", quality, "recovery", "sparsity", "decode ×", "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    for job in state.jobs:
        found = job.headline
        table.add_row(
            str(job.job.num),
            escape(job.job.name),
            f"[{job.status.style}]{job.status.label}[/]",
            f"{job.stored}/{len(job.job.nodes)}" if job.job.nodes else "",
            format_value(found.quality) if found.quality else "",
            _format(found.recovery, ".1f", " %"),
            _format(found.sparsity, ".3g"),
            _speed(found.speedup) if found.speedup else "",
            _format(found.seconds or None, ".0f"),
        )
    return table


def _speed(speedup: Metric) -> str:
    """Returns `6.28 (5.91–6.40) engine_int8`: the median, the range over the rounds and the backend."""
    rounds = [f"{speedup.protocol[end]:.2f}" for end in ("slowest", "fastest") if end in speedup.protocol]
    ends = f" ({'–'.join(rounds)})" if rounds else ""
    return f"{speedup.value:.2f}{ends} {speedup.protocol['backend']}"


def sweeps_table(states: Sequence[SweepState]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("id", "status", "jobs done", "executed"):
        table.add_column(column, no_wrap=True)
    table.add_column("what", overflow="fold")
    successors = {state.sweep.continues: state.sweep.id for state in states if state.sweep.continues}
    for state in states:
        counts = state.counts
        after = successors.get(state.sweep.id)
        continued = [f"→ {after}"] if after else []
        table.add_row(
            state.sweep.id,
            f"[{state.status.style}]{state.status.label}[/]",
            f"{counts[Status.DONE]} of {len(state.jobs)}"
            + (f", {counts[Status.FAILED]} failed" if counts[Status.FAILED] else ""),
            f"{state.executed} of {len(state.nodes)}",
            escape(" ".join([*continued, _asked(state)])),
        )
    return table


def _asked(state: SweepState) -> str:
    """Returns the swept parameters with their values: `experiment=gradual sparsity=0.5,0.6 distill=ce,kd`."""
    values: dict[str, dict[str, None]] = {}
    for job in state.jobs:
        for key, value in job.job.swept_parameters.items():
            values.setdefault(key, {})[value] = None
    chosen = [word for word in state.sweep.command if word.startswith("experiment=")]
    return " ".join([*chosen, *(f"{key}={','.join(found)}" for key, found in values.items() if key != "experiment")])


def _counted(state: SweepState) -> str:
    counts = ", ".join(f"{count} {status.label}" for status, count in state.counts.items())
    return f"{len(state.jobs)} jobs: {counts}"


def _format(value: float | None, spec: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{spec}}{unit}"
