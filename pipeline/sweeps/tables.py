"""Tables of sweeps: what the jobs would run, what became of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.estimating.estimates import of_jobs, told_duration, told_total, total
from pipeline.headline import Nodes, headline, main_metric
from pipeline.job import went_well
from pipeline.plan import Planned
from pipeline.sweeps.plan import JobPlan, distinct
from pipeline.sweeps.state import SweepState, started
from pipeline.sweeps.sweep import shared
from pipeline.table import warn


def show_plans(plans: Sequence[JobPlan], console: Console) -> None:
    """One row for what jobs share, then one for what each job runs alone. Every result stands in one row."""
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
    running = [item for item in results.values() if item.status == "run"]
    nodes = sum(len(item.plan) for item in plans)
    stored = sum(item.status == "hit" for item in results.values())
    console.print(
        f"{nodes} nodes in {len(plans)} jobs, {len(results)} distinct: {len(running)} to run, {stored} stored",
        highlight=False,
    )
    if running:
        estimated = of_jobs((item.plan, item.config) for item in plans if item.config)
        console.print(told_total(total(estimated.values())), highlight=False, soft_wrap=True)
    if warned := list(dict.fromkeys(item.node.name for item in results.values() if item.warning)):
        told = next(item.warning for item in results.values() if item.warning)
        warn(f"{', '.join(warned)}: {told}", console)


def _cells(items: Sequence[Planned]) -> tuple[str, str, str]:
    to_run = [item.node.name for item in items if item.status == "run"]
    stored = sum(item.status == "hit" for item in items)
    return str(len(to_run)), str(stored), listed(to_run)


def listed(names: Sequence[str]) -> str:
    """`dense, prune_50, finetune_50 × 3`: jobs have nodes of the same name and other settings."""
    return ", ".join(name + (f" × {count}" if count > 1 else "") for name, count in Counter(names).items())


STYLES = (
    dict.fromkeys(("done", "stored"), "green")
    | dict.fromkeys(("failed", "killed", "stopped", "missing", "unfinished"), "red")
    | {"running": "yellow", "waiting": "dim"}
)


def show_end(state: SweepState, console: Console) -> None:
    """What a sweep tells when its last job has ended."""
    sweep = state.sweep
    console.print()
    show_jobs(state, console)
    nodes = sum(len(job.nodes) for job in sweep.jobs)
    took = told_duration(time.time() - started(sweep).timestamp())
    console.print(
        f"[bold]sweep {sweep.id}[/]: {_counted(state)}; {nodes} nodes, {len(state.nodes)} distinct, {state.executed} "
        f"executed, {state.shared_executed} of them before the jobs that share them; {took}",
        highlight=False,
    )
    if state.status != "done":
        console.print(f"retry      python -m pipeline.sweeps retry-failed {sweep.id}", highlight=False, soft_wrap=True)
    console.print(f"report     python -m pipeline.report {sweep.folder}", highlight=False, soft_wrap=True)


def show_job_end(name: str, nodes: Nodes, console: Console) -> None:
    """One line, where a run of its own shows tables."""
    counts = Counter(node["status"] for node in nodes.values())
    found, metric = headline(nodes), main_metric(nodes)
    told = [f"{metric} {found[metric]:.4g}"] if metric in found else []
    told += [f"recovery {found['recovery']:.1f} %"] if "recovery" in found else []
    told += [f"{count} {status}" for status, count in counts.items()]
    console.print(
        f"{'[green]✓' if went_well(nodes) else '[red]✗'} {escape(name)}[/]: {', '.join(told)}",
        highlight=False,
    )


def show_jobs(state: SweepState, console: Console) -> None:
    """Their table, and below it why jobs failed."""
    console.print(jobs_table(state))
    for job in state.jobs:
        if job.reason:
            console.print(f"[red]✗ job {job.job.num}[/]: {escape(job.reason)}", highlight=False, soft_wrap=True)


def jobs_table(state: SweepState) -> Table:
    """Jobs, their status, how many of their results are there, and their main quality."""
    metric = next((job.metric for job in state.jobs if job.metric), "quality")
    table = Table(box=None, pad_edge=False)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("job", overflow="fold")
    table.add_column("", no_wrap=True)
    for column in ("stored", metric, "recovery", "sparsity", "decode ×", "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    for job in state.jobs:
        found = job.headline
        value = f"{found[job.metric]:.4g}" if job.metric in found else ""
        error = found.get(f"{job.metric}_stderr")
        table.add_row(
            str(job.job.num),
            escape(job.job.name),
            f"[{STYLES[job.status]}]{job.status}[/]",
            f"{job.stored}/{len(job.job.nodes)}" if job.job.nodes else "",
            value + (f" ± {error:.2g}" if error is not None else ""),
            _format(found.get("recovery"), ".1f", " %"),
            _format(found.get("sparsity"), ".3g"),
            _format(found.get("best_decode_speedup"), ".2f"),
            _format(found.get("seconds"), ".0f"),
        )
    return table


def sweeps_table(states: Sequence[SweepState]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("id", "status", "jobs done", "executed"):
        table.add_column(column, no_wrap=True)
    table.add_column("what", overflow="fold")
    successors = {state.sweep.continues: state.sweep.id for state in states if state.sweep.continues}
    for state in states:
        counts = state.counts
        after = successors.get(state.sweep.id)
        told = [f"→ {after}"] if after else []
        table.add_row(
            state.sweep.id,
            f"[{STYLES[state.status]}]{state.status}[/]",
            f"{counts['done']} of {len(state.jobs)}" + (f", {counts['failed']} failed" if counts["failed"] else ""),
            f"{state.executed} of {len(state.nodes)}",
            escape(" ".join([*told, _asked(state)])),
        )
    return table


def _asked(state: SweepState) -> str:
    """`experiment=gradual sparsity=0.5,0.6 distill=ce,kd`."""
    values: dict[str, dict[str, None]] = {}
    for job in state.jobs:
        for key, value in job.job.dials.items():
            values.setdefault(key, {})[value] = None
    chosen = [word for word in state.sweep.command if word.startswith("experiment=")]
    return " ".join([*chosen, *(f"{key}={','.join(found)}" for key, found in values.items() if key != "experiment")])


def _counted(state: SweepState) -> str:
    counts = ", ".join(f"{count} {status}" for status, count in state.counts.items())
    return f"{len(state.jobs)} jobs: {counts}"


def _format(value: float | None, spec: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{spec}}{unit}"
