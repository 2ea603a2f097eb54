"""Plans a run: each node is a hit or has to run, and why. Reads the store, never torch or MLflow."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.fingerprint import code_digest, fingerprint, flatten
from pipeline.graph import Graph, Node, ancestors
from pipeline.located import with_identities
from pipeline.record.status import Status
from pipeline.schema import Config
from pipeline.store.store import Entry, Store
from stages.contracts import Benchmark, Metrics, UserError
from stages.index import STAGES, provider
from stages.kinds import providers
from stages.stage import Stage

MEASUREMENTS = (Metrics, Benchmark)
"""Kinds of results that are wanted for themselves."""
NEAREST = 200
"""Number of stored results of a stage that are compared to explain a missing one."""


@dataclass(frozen=True)
class Stores:
    runs: Store
    cache: Store

    @classmethod
    def of(cls, config: Config) -> Stores:
        """Returns the stores of a configuration, and tells sources of this process and its children where the cache
        is."""
        os.environ["SQUAREHEAD_CACHE"] = config.cache.folder
        return cls.below(Path(config.runs), Path(config.cache.folder))

    @classmethod
    def below(cls, runs: Path, cache: Path) -> Stores:
        return cls(Store(runs / "store", "runs"), Store(cache / "store", "cache.folder"))

    def for_stage(self, spec: Stage) -> Store:
        return self.cache if spec.in_cache else self.runs


@dataclass(frozen=True)
class Planned:
    node: Node
    spec: Stage
    config: dict[str, Any]
    """The options that are fingerprinted, with identities in place of paths."""
    inputs: dict[str, str]
    """Role -> fingerprint."""
    fingerprint: str
    status: Status
    """HIT, TO_RUN or UNNEEDED."""
    reason: str
    entry: Entry | None
    replace: bool = False
    """A result is there and must be made again: forced, damaged, or made by other code."""
    warning: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "stage": self.node.stage,
            "fingerprint": self.fingerprint,
            "status": self.status,
            "reason": self.reason,
            "inputs": self.node.inputs,
            "config": self.config,
        }


Plan = dict[str, Planned]


def make_plan(config: Config, graph: Graph, stores: Stores, reasons: bool = True) -> Plan:
    """Decides for every node of a resolved configuration's graph (`resolve`, `recipes.build`) whether it is a hit or
    runs. Without `reasons` it does not look for how a missing result differs from stored ones, which takes time.

    Raises UserError for unknown names in `until` and `force`, and for sources that cannot be identified.
    """
    wanted = ancestors(graph, config.until) if config.until else set(graph)
    if unknown := [name for name in config.force if name not in graph]:
        raise UserError(f"no node {unknown[0]!r} in this run; there are: {', '.join(graph)}", "force")
    if idle := [name for name in config.force if name not in wanted]:
        raise UserError(f"until={config.until} leaves out {idle[0]}; force what it needs, or run further", "force")
    plan: Plan = {}
    for name, node in graph.items():
        if name in wanted:
            plan[name] = _decide(node, plan, config, stores, reasons)
    return _drop_unneeded(plan)


def _decide(node: Node, plan: Plan, config: Config, stores: Stores, reasons: bool) -> Planned:
    spec = STAGES[node.stage]
    described = _described(node)
    inputs = {role: plan[source].fingerprint for role, source in node.inputs.items()}
    key = fingerprint(node.stage, spec.version, described, inputs, spec.irrelevant)
    store = stores.for_stage(spec)
    entry = store.find(node.stage, key)

    def planned(status: Status, reason: str, **more: Any) -> Planned:
        return Planned(node, spec, described, inputs, key, status, reason, entry, **more)

    if node.name in config.force:
        return planned(Status.TO_RUN, "forced", replace=True)
    remade = [source for source in node.inputs.values() if plan[source].replace]
    if remade and entry:
        return planned(Status.TO_RUN, f"its input {remade[0]} is made again", replace=True)
    if entry is None:
        if damage := store.damage(node.stage, key):
            return planned(Status.TO_RUN, f"the stored result is damaged: {damage}", replace=True)
        new = "" if spec.is_source else _new_source(node, plan)
        why = new or (_why_missing(node, spec, described, inputs, store) if reasons else "not stored")
        return planned(Status.TO_RUN, why)
    outdated = "its code changed since" if entry.meta.get("code") != code_of(spec) else ""
    outdated = outdated or _changed_since(entry, node, plan)
    if outdated and config.cache.code == "strict":
        return planned(Status.TO_RUN, f"{outdated} (cache.code=strict)", replace=True)
    return planned(Status.HIT, "", warning=f"{outdated}; cache.code=strict would run it again" if outdated else "")


def _changed_since(entry: Entry, node: Node, plan: Plan) -> str:
    """Returns a note on an input that a forced or strict run made again, with contents other than those this result was
    made from; empty if there is none."""
    known = entry.meta.get("contents", {})
    for role, source in node.inputs.items():
        there = plan[source].entry
        if there and role in known and known[role] != there.content:
            return f"its input {source} was made again since, with another result"
    return ""


def code_of(spec: Stage) -> str:
    """Returns the digest of a stage's code; for a stage from another package, that package with its version."""
    return next(iter(provider(spec.name).values()), "") or code_digest(spec.module)


def _described(node: Node) -> dict[str, Any]:
    """Returns what a fingerprint covers of a node's options: their dump, with identities and providers."""
    described = node.config.model_dump(mode="json")
    if brought := provider(node.stage) | providers(node.config):
        # what other packages bring changes with their versions
        described["providers"] = brought
    # outside data enter by digest or revision, never by path
    with_identities(described, node.config, node.name if STAGES[node.stage].is_source else node.stage)
    return described


NEW = "new "
"""Start of the reason of a node whose model or data are not stored, so that there can be no earlier result."""


def _new_source(node: Node, plan: Plan) -> str:
    """Returns `new model` or `new data` if that is why there is no earlier result; else an empty string."""
    for name in node.inputs.values():
        source = plan[name]
        if source.spec.is_source and source.entry is None:
            return NEW + name
        if source.reason.startswith(NEW):
            return source.reason
    return ""


def _why_missing(node: Node, spec: Stage, described: Mapping[str, Any], inputs: Mapping[str, str], store: Store) -> str:
    """Lists the keys that differ from the nearest stored result of the stage."""
    ours = flatten(described) | {"version": spec.version}
    best: list[str] | None = None
    for entry in store.newest(node.stage, NEAREST):
        theirs = flatten(entry.meta["config"]) | {"version": entry.meta["version"]}
        changed = [
            f"{name} {theirs.get(name, 'unset')} → {ours.get(name, 'unset')}"
            for name in [*ours, *(theirs.keys() - ours.keys())]
            if ours.get(name) != theirs.get(name) and name not in spec.irrelevant
        ]
        changed += [
            f"input {node.inputs.get(role, role)} differs"
            for role in sorted({*inputs, *entry.meta["inputs"]})
            if inputs.get(role) != entry.meta["inputs"].get(role)
        ]
        if best is None or len(changed) < len(best):
            best = changed
    if best is None:
        return "no earlier result"
    shown = ", ".join(best[:3])
    return shown + (f" and {len(best) - 3} more" if len(best) > 3 else "")


def _drop_unneeded(plan: Plan) -> Plan:
    """Marks missing results as UNNEEDED unless a node that runs reads them, nothing follows them, or they are
    measurements, which are wanted for themselves."""
    used = {source for item in plan.values() for source in item.node.inputs.values()}
    wanted = {name for name, item in plan.items() if name not in used or item.spec.makes in MEASUREMENTS}
    needed: set[str] = set()
    for name, item in reversed(plan.items()):
        if item.status == Status.TO_RUN and (item.replace or name in wanted or name in needed):
            needed |= {name, *item.node.inputs.values()}
    return {
        name: item
        if item.status == Status.HIT or name in needed
        else replace(item, status=Status.UNNEEDED, reason="not stored, and no node that runs reads it")
        for name, item in plan.items()
    }
