"""Running a plan: nodes in order, each under its lock, published whole; a failure stops its descendants only."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape

from engine import cpu
from pipeline import heap, preflight
from pipeline.ending import Ending
from pipeline.environment import environment
from pipeline.failures import explain
from pipeline.fingerprint import code_digest
from pipeline.log import StageLog
from pipeline.plan import MEASUREMENTS, Plan, Planned, Stores
from pipeline.schema import Config
from pipeline.store.store import Entry, Slot
from pipeline.tracking.tracker import Tracker
from stages.contracts import Artifact, Stopped, UserError
from stages.data.spec import Data
from stages.index import STAGES
from stages.model.spec import Model

Status = Literal["hit", "done", "failed", "not run", "unneeded"]


@dataclass
class Outcome:
    """What became of a node."""

    stage: str
    fingerprint: str
    status: Status
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    error: str = ""


Outcomes = dict[str, Outcome]
Send = Callable[[Mapping[str, float], int, float], None]
"""Passes a point of a curve on to the tracker: values, step, seconds since the epoch."""


def run_plan(
    plan: Plan, config: Config, stores: Stores, tracker: Tracker, console: Console, folder: Path, bars: bool,
    outcomes: Outcomes, failed: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Runs what has to run and fills `outcomes`; `failed` (fingerprint -> why) is not tried again. Once the sources are
    there, everything is checked (`pipeline.preflight`), and if a node could not end well, none begins. Never raises for
    a failed stage: its outcome says so, and tracebacks of bugs are kept in `folder`. KeyboardInterrupt stops at once;
    what is published stays."""
    cpu.use(config.threads)
    entries: dict[str, Entry] = {}
    refused: dict[str, str] | None = None
    for name, item in plan.items():
        outcome = outcomes[name] = Outcome(item.node.stage, item.fingerprint, "not run")
        if item.status == "unneeded":
            outcome.status = "unneeded"
            continue
        if refused is None and item.status == "run" and not item.spec.is_source:
            _mend_sources(plan, entries, outcomes, config, stores, tracker, console, bars)
            refused = _refused(plan, entries, config, stores, console, folder)
        if refused and item.status == "run":
            outcome.status = "failed" if name in refused else "not run"
            outcome.error = refused.get(name, f"{', '.join(refused)} could not end well")
            continue
        lost = [source for source in item.node.inputs.values() if source not in entries]
        if lost and item.status != "hit":  # what is stored needs none of what it was made from
            outcome.error = f"needs {', '.join(lost)}"
            continue
        if failed and item.fingerprint in failed:
            outcome.status, outcome.error = "failed", failed[item.fingerprint]
            console.print(f"[red]✗ {name}[/], shared: {escape(outcome.error)}", highlight=False, soft_wrap=True)
            continue
        if item.status == "hit":
            stores.for_stage(item.spec).tidy(item.node.stage, item.fingerprint)
        if item.status == "run" and (broken := [it for it in item.node.after if _is_lost(it, outcomes)]):
            outcome.error = f"nothing could judge it: {broken[0]} {outcomes[broken[0]].status}"
            continue
        started = time.monotonic()
        try:
            if item.status == "hit" and item.entry:
                entries[name], outcome.status = item.entry, "hit"
                if item.spec.makes in MEASUREMENTS:  # the end of the job shows their figures
                    _mend(name, plan, entries, outcomes, config, stores, tracker, console, bars)
                entry = entries[name]
            else:
                _mend_inputs(item, plan, entries, outcomes, config, stores, tracker, console, bars)
                entry, outcome.status = _fill(item, entries, config, stores, tracker, console, bars)
            if outcome.status == "hit":
                tracker.hit(name, entry)
            entries[name] = entry
            outcome.metrics = dict(entry.meta["metrics"])
            outcome.seconds = float(entry.meta["seconds"])
        except Stopped as stopped:
            outcome.error = str(stopped)
            console.print(f"[yellow]■ {name}[/]: {escape(outcome.error)}", highlight=False, soft_wrap=True)
            raise KeyboardInterrupt from stopped
        except Exception as error:
            outcome.status, outcome.error = "failed", explain(error, name, folder)
            outcome.seconds = time.monotonic() - started
            console.print(f"[red]✗ {name}[/]: {escape(outcome.error)}", highlight=False, soft_wrap=True)


def _refused(
    plan: Plan, entries: Mapping[str, Entry], config: Config, stores: Stores, console: Console, folder: Path
) -> dict[str, str]:
    """By node, in one line each: what the checks before the work found; said as it is found."""
    found: dict[str, str] = {}
    try:
        found = {name: str(error) for name, error in preflight.problems(plan, entries, config.device).items()}
        if not found and (short := preflight.shortages(plan, entries, config, stores)):
            found = {preflight.working(plan)[0]: "; ".join(map(str, short))}
    except Exception as error:  # a bug in a check, like one in a stage
        found = {preflight.working(plan)[0]: explain(error, "checks", folder)}
    for name, line in found.items():
        console.print(f"[red]✗ {name}[/], checked beforehand: {escape(line)}", highlight=False, soft_wrap=True)
    return found


def _mend_sources(
    plan: Plan, entries: dict[str, Entry], outcomes: Outcomes, config: Config, stores: Stores, tracker: Tracker,
    console: Console, bars: bool,
) -> None:  # fmt: skip
    """The sources are read by the checks, before any stage. A damaged one that cannot be made again is told by the
    stage that needs it."""
    for name in list(entries):
        reader = replace(plan[name], node=replace(plan[name].node, inputs={"source": name}))
        with suppress(UserError):
            _mend_inputs(reader, plan, entries, outcomes, config, stores, tracker, console, bars)


def _mend_inputs(
    item: Planned, plan: Plan, entries: dict[str, Entry], outcomes: Outcomes, config: Config, stores: Stores,
    tracker: Tracker, console: Console, bars: bool,
) -> None:  # fmt: skip
    """Compares the files of a node's inputs with their recorded digests, and makes a damaged one again.

    Raises UserError where that needs results that are not there.
    """
    for source in item.node.inputs.values():
        _mend(source, plan, entries, outcomes, config, stores, tracker, console, bars)


def _mend(
    name: str, plan: Plan, entries: dict[str, Entry], outcomes: Outcomes, config: Config, stores: Stores,
    tracker: Tracker, console: Console, bars: bool,
) -> None:  # fmt: skip
    """Compares the files of a node's result with their recorded digests, and makes it again if they are damaged."""
    item, entry = plan[name], entries[name]
    if not (why := stores.for_stage(item.spec).corruption(entry)):
        return
    place = f"{entry.stage}/{entry.path.name}"
    if any(source not in entries for source in item.node.inputs.values()):
        options = f"--runs {config.runs}"
        options += f" --cache {config.cache.folder}" if item.spec.in_cache else ""
        raise UserError(
            f"the result {name} ({place}) is damaged: {why}; `python -m pipeline.store {options} verify --remove` "
            "deletes it, and the same line makes it again"
        )
    console.print(f"! {name} ({place}): {why}; it is made again", style="yellow", markup=False, soft_wrap=True)
    again = replace(item, status="run", reason=f"the stored result is damaged: {why}", replace=True)
    _mend_inputs(again, plan, entries, outcomes, config, stores, tracker, console, bars)
    entries[name], outcomes[name].status = _fill(again, entries, config, stores, tracker, console, bars)
    outcomes[name].metrics = dict(entries[name].meta["metrics"])


def _is_lost(name: str, outcomes: Outcomes) -> bool:
    return name in outcomes and outcomes[name].status in ("failed", "not run")


def _fill(
    item: Planned, entries: dict[str, Entry], config: Config, stores: Stores, tracker: Tracker, console: Console,
    bars: bool,
) -> tuple[Entry, Literal["hit", "done"]]:  # fmt: skip
    name = item.node.name

    def waiting(who: str) -> None:
        console.print(f"… {name}: waiting for {escape(who)}, which is making the same", highlight=False)

    store = stores.for_stage(item.spec)
    with store.fill(item.node.stage, item.fingerprint, waiting, replace=item.replace) as slot:
        if slot.entry:
            return slot.entry, "hit"
        console.print(f"[bold]▶ {name}[/] [dim]{escape(item.reason)}[/]", highlight=False, soft_wrap=True)
        stage_run = tracker.start_stage(name, item.node.stage, item.fingerprint, item.config)
        try:
            entry = _execute(item, entries, config, slot, stage_run.metrics, console, bars)
        except BaseException as error:
            stage_run.fail(error)
            raise
        stage_run.finish(entry)
        console.print(f"[green]✓ {name}[/] [dim]{entry.meta['seconds']:.1f} s[/]", highlight=False)
        return entry, "done"


def _execute(
    item: Planned, entries: dict[str, Entry], config: Config, slot: Slot,
    send: Send, console: Console, bars: bool,
) -> Entry:  # fmt: skip
    run = importlib.import_module(item.spec.module).run
    inputs: dict[str, Artifact] = {
        role: entries[source].artifact(STAGES[entries[source].stage].makes) for role, source in item.node.inputs.items()
    }
    started = time.monotonic()
    contents = {role: entries[source].content for role, source in item.node.inputs.items()}
    code = code_digest(item.spec.module)
    of_code = code if config.cache.code == "strict" else "any"
    slot.resume_from({"contents": contents, "code": of_code}, anew=item.node.name in config.force)
    Ending.stage_begins()
    log = StageLog(
        item.node.name, slot.out, slot.resume, console, bars, send, slot.progress, config.device, Ending.should_stop
    )
    with heap.kept(), log:
        metrics = run(_with_commit(item), inputs, slot.out, log)
    return slot.publish(
        {
            "stage": item.node.stage,
            "version": item.spec.version,
            "fingerprint": item.fingerprint,
            "config": item.config,
            "inputs": item.inputs,
            "contents": contents,
            "inputs_compared": True,
            "facts": log.found,
            "metrics": {name: float(value) for name, value in metrics.items()},
            "seconds": time.monotonic() - started,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "environment": environment(config.threads),
            "device": config.device,
            "code": code,
        }
    )


def _with_commit(item: Planned) -> Any:
    """The node's slice; a hub source is pinned to the very commit that was fingerprinted."""
    commit = item.config.get("identity", {}).get("commit")
    if commit and isinstance(item.node.config, Model | Data):
        return item.node.config.model_copy(update={"revision": commit})
    return item.node.config
