"""Runs a plan: nodes in order, each under its lock, published whole; a failure stops its descendants only."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from engine import cpu
from pipeline import heap, preflight
from pipeline.ending import Ending
from pipeline.environment import environment
from pipeline.failures import explain
from pipeline.job_log import kept_log
from pipeline.located import changed
from pipeline.log import StageLog
from pipeline.plan import MEASUREMENTS, Plan, Planned, Stores, code_of
from pipeline.record.metrics import of_result
from pipeline.record.outcome import Outcome, Outcomes
from pipeline.record.status import Status
from pipeline.schema import Config
from pipeline.store.store import Entry, Slot
from pipeline.table import say_problem
from pipeline.tracking.tracker import Tracker
from stages.contracts import Artifact, Stopped, UserError
from stages.index import STAGES
from stages.options import Located

Send = Callable[[Mapping[str, float], int, float], None]
"""Function that passes a point of a curve on to the tracker: values, step, seconds since the epoch."""


def run_plan(
    plan: Plan, config: Config, stores: Stores, tracker: Tracker, console: Console, folder: Path, bars: bool,
    outcomes: Outcomes, failed: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Runs what has to run and fills `outcomes`; nodes in `failed` (fingerprint -> why) are not tried again. Once the
    sources are there, everything is checked (`pipeline.preflight`), and if a node would fail, none begins. Never raises
    for a failed stage: its outcome has the error, and `folder` keeps the log, and tracebacks of bugs. KeyboardInterrupt
    stops at once; published results stay."""
    cpu.use(config.threads)
    outcomes |= {name: Outcome(name, item.node.stage, item.fingerprint) for name, item in plan.items()}
    with kept_log(console, folder):
        _Run(plan, config, stores, tracker, console, folder, bars, outcomes, failed or {}).run()


@dataclass
class _Run:
    """A plan that is being run."""

    plan: Plan
    config: Config
    stores: Stores
    tracker: Tracker
    console: Console
    folder: Path
    bars: bool
    outcomes: Outcomes
    failed: Mapping[str, str]
    entries: dict[str, Entry] = field(default_factory=dict)
    """Results that are there, by node."""

    def run(self) -> None:
        refused = self._refused(preflight.device_problems(self.plan, self.config.device))
        is_checked = False
        for name, item in self.plan.items():
            outcome = self.outcomes[name]
            if item.status == Status.UNNEEDED:
                outcome.status = Status.UNNEEDED
                continue
            if not (refused or is_checked or item.spec.is_source) and item.status == Status.TO_RUN:
                is_checked = True
                self._mend_sources()
                refused = self._check()
            if refused and item.status == Status.TO_RUN:
                outcome.status = Status.FAILED if name in refused else Status.NOT_RUN
                outcome.error = refused.get(name, f"{', '.join(refused)} would fail")
            elif item.status == Status.TO_RUN and (lost := self._lost_inputs(item)):
                outcome.error = f"needs {', '.join(lost)}"
            elif item.fingerprint in self.failed:
                outcome.status, outcome.error = Status.FAILED, self.failed[item.fingerprint]
                self._say(f"[red]✗ {name}[/], shared: {escape(outcome.error)}")
            elif item.status == Status.TO_RUN and (broken := [it for it in item.node.after if self._is_lost(it)]):
                outcome.error = f"it cannot be evaluated: {broken[0]} {self.outcomes[broken[0]].status}"
            else:
                self._node(item, outcome)

    def _node(self, item: Planned, outcome: Outcome) -> None:
        started = time.monotonic()
        try:
            if item.status == Status.HIT and item.entry:
                self.stores.for_stage(item.spec).tidy(item.node.stage, item.fingerprint)
                self.entries[outcome.name], outcome.status = item.entry, Status.HIT
                if item.spec.makes in MEASUREMENTS:  # the job's tables show their figures
                    self._mend(outcome.name)
                self._stored(outcome, self.entries[outcome.name], outcome.status)
            else:
                self._mend_inputs(item)
                self._stored(outcome, *self._fill(item))
        except Stopped as stopped:
            outcome.error = str(stopped)
            self._say(f"[yellow]■ {item.node.name}[/]: {escape(outcome.error)}")
            raise KeyboardInterrupt from stopped
        except Exception as error:
            outcome.status, outcome.error = Status.FAILED, explain(error, item.node.name, self.folder)
            outcome.seconds = time.monotonic() - started
            self._say(f"[red]✗ {item.node.name}[/]: {escape(outcome.error)}")

    def _stored(self, outcome: Outcome, entry: Entry, status: Status) -> None:
        self.entries[outcome.name] = entry
        outcome.status, outcome.seconds = status, float(entry.meta["seconds"])
        outcome.metrics = of_result(entry.stage, entry.meta["metrics"], entry.path)
        self.tracker.sync(self.outcomes)

    def _lost_inputs(self, item: Planned) -> list[str]:
        return [source for source in item.node.inputs.values() if source not in self.entries]

    def _is_lost(self, name: str) -> bool:
        return name in self.outcomes and self.outcomes[name].status in (Status.FAILED, Status.NOT_RUN)

    def _check(self) -> dict[str, str]:
        """Returns what the checks with the sources found, by node, in one line each."""
        try:
            problems = preflight.problems(self.plan, self.entries, self.config.device)
            if not problems and (short := preflight.shortages(self.plan, self.entries, self.config, self.stores)):
                problems = {preflight.working(self.plan)[0]: UserError("; ".join(map(str, short)))}
            return self._refused(problems)
        except Exception as error:  # a bug in a check, like one in a stage
            bug = explain(error, "checks", self.folder)
            return self._refused({preflight.working(self.plan)[0]: UserError(bug)})

    def _refused(self, problems: preflight.Problems) -> dict[str, str]:
        for name, error in problems.items():
            say_problem(name, error, self.console)
        return {name: str(error) for name, error in problems.items()}

    def _mend_sources(self) -> None:
        """Repairs damaged sources, since the checks read them before any stage. One that cannot be made again is
        reported by the stage that needs it."""
        for name in list(self.entries):
            reader = replace(self.plan[name], node=replace(self.plan[name].node, inputs={"source": name}))
            with suppress(UserError):
                self._mend_inputs(reader)

    def _mend_inputs(self, item: Planned) -> None:
        """Compares the files of a node's inputs with their recorded digests, and makes damaged ones again.

        Raises UserError if that needs results that are not there.
        """
        for source in item.node.inputs.values():
            self._mend(source)

    def _mend(self, name: str) -> None:
        """Compares the files of a node's result with their recorded digests, and makes it again if they are damaged."""
        item, entry = self.plan[name], self.entries[name]
        if not (why := self.stores.for_stage(item.spec).corruption(entry)):
            return
        place = f"{entry.stage}/{entry.path.name}"
        if self._lost_inputs(item):
            options = f"--runs {self.config.runs}"
            options += f" --cache {self.config.cache.folder}" if item.spec.in_cache else ""
            raise UserError(
                f"the result {name} ({place}) is damaged: {why}; `python -m pipeline.store {options} verify --remove` "
                "deletes it, and the same command makes it again"
            )
        line = f"! {name} ({place}): {why}; it is made again"
        self.console.print(line, style="yellow", markup=False, soft_wrap=True)
        reason = f"the stored result is damaged: {why}"
        again = replace(item, status=Status.TO_RUN, reason=reason, replace=True)
        self._mend_inputs(again)
        self._stored(self.outcomes[name], *self._fill(again))

    def _fill(self, item: Planned) -> tuple[Entry, Status]:
        """Returns the node's result, made here (DONE) or by another process meanwhile (HIT)."""
        name = item.node.name

        def waiting(who: str) -> None:
            self.console.print(f"… {name}: waiting for {escape(who)}, which makes the same result", highlight=False)

        store = self.stores.for_stage(item.spec)
        with store.fill(item.node.stage, item.fingerprint, waiting, replace=item.replace) as slot:
            if slot.entry:
                return slot.entry, Status.HIT
            self._say(f"[bold]▶ {name}[/] [dim]{escape(item.reason)}[/]")
            stream = self.tracker.start_stage(name, item.node.stage, item.fingerprint, item.config)
            try:
                entry = self._execute(item, slot, stream.metrics)
            except BaseException as error:
                stream.fail(error)
                raise
            self._say(f"[green]✓ {name}[/] [dim]{entry.meta['seconds']:.1f} s[/]")
            return entry, Status.DONE

    def _execute(self, item: Planned, slot: Slot, send: Send) -> Entry:
        run = importlib.import_module(item.spec.module).run
        sources = {role: self.entries[source] for role, source in item.node.inputs.items()}
        inputs: dict[str, Artifact] = {
            role: entry.artifact(STAGES[entry.stage].makes) for role, entry in sources.items()
        }
        started = time.monotonic()
        contents = {role: entry.content for role, entry in sources.items()}
        code = code_of(item.spec)
        of_code = code if self.config.cache.code == "strict" else "any"
        slot.resume_from({"contents": contents, "code": of_code}, anew=item.node.name in self.config.force)
        Ending.stage_begins()
        log = StageLog(
            item.node.name, slot.out, slot.resume, self.console, self.bars, send, slot.progress, self.config.device,
            Ending.should_stop,
        )  # fmt: skip
        with heap.kept(), log:
            metrics = run(_with_commits(item), inputs, slot.out, log)
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
                "environment": environment(self.config.threads),
                "device": self.config.device,
                "code": code,
            }
        )

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)


def _with_commits(item: Planned) -> Any:
    """Returns the node's options with hub sources pinned to the commits that were fingerprinted."""

    def commit(_: Located, keys: tuple[str, ...]) -> dict[str, str]:
        found: Any = item.config
        for key in keys:
            found = found[key]
        return {"revision": found["identity"]["commit"]} if "commit" in found["identity"] else {}

    return changed(item.node.config, commit)
