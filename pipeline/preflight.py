"""Checks all nodes as soon as the model and the data are there, before any stage works for hours and another one fails.

A stage compares its options with the records of the model and the data (`Stage.check_early`), which needs no torch, so
that a dry run does it too. Stages whose work depends on the contents of the data also have a `check(options, model,
data)` beside their `run`, which raises UserError for what `run` would refuse. Both get the source model: later ones
have the same linears, context and tokenizer.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import psutil

from pipeline import gpu
from pipeline.disk import format_bytes, free_bytes
from pipeline.estimating.estimates import Estimate, of_plan, total
from pipeline.plan import Plan, Planned, Stores
from pipeline.record.status import Status
from pipeline.schema import Config
from pipeline.store.store import Entry
from stages.contracts import Artifact, Checkpoint, DataSet, UserError
from stages.dense.spec import DenseOptions
from stages.finetune.spec import FinetuneOptions
from stages.index import STAGES

Problems = dict[str, UserError]
"""Node -> why it would fail."""
DATA_NODES = ("prepare", "data")
"""Nodes of the data as the model reads them; the first one present counts."""
MAX_NAMED = 3
"""How many nodes that need too much memory are named."""
Check = Callable[[Planned, Checkpoint, DataSet | None], None]
"""Check of a node, given the model and the data as the model reads them. Raises UserError."""


def on_device(device: str) -> None:
    """Raises UserError where torch cannot compute on the device."""
    importlib.import_module("stages.devices").of(device)


def device_problems(plan: Plan, device: str, check: Callable[[str], None] = on_device) -> Problems:
    """Returns a problem of the device, reported for the first node that has to run. `device` is empty where other
    machines compute."""
    work = working(plan)
    try:
        if work and device == "cuda":
            check(device)
    except UserError as error:
        return dict.fromkeys(work[:1], error)
    return {}


def problems(plan: Plan, entries: Mapping[str, Entry], device: str) -> Problems:
    """Returns what the nodes that have to run would refuse. `entries` are the results of the plan's sources, by node.
    Without the model nothing is checked; if another source failed, only the checks by records run."""
    missing = [
        name
        for name, item in plan.items()
        if item.spec.is_source and item.status != Status.UNNEEDED and name not in entries
    ]
    checks = (_check_early,) if missing else (_check_early, _check_data(entries))
    return _problems(plan, entries, device, on_device, checks)


def early_problems(plan: Plan, device: str) -> Problems:
    """Returns the same, as far as this machine and the records of stored sources tell without torch."""
    stored = {name: item.entry for name, item in plan.items() if item.entry}
    return _problems(plan, stored, device, gpu.check, (_check_early,))


def _problems(
    plan: Plan, entries: Mapping[str, Entry], device: str, check_device: Callable[[str], None], checks: Sequence[Check]
) -> Problems:
    found = device_problems(plan, device, check_device)
    model, data = _sources(entries)
    if found or model is None:
        return found
    for name in working(plan):
        try:
            for check in checks:
                check(plan[name], model, data)
        except UserError as error:
            found[name] = error
    return found


def shortages(plan: Plan, entries: Mapping[str, Entry], config: Config, stores: Stores) -> list[UserError]:
    """Returns what this machine has too little of to run the rest of a plan. `entries`: the results that are there, by
    node."""
    filled = {
        name: replace(item, entry=entries[name], status=Status.HIT) if name in entries else item
        for name, item in plan.items()
    }
    return too_little(filled, of_plan(filled, config, stores), stores)


def too_little(items: Mapping[str, Planned], estimates: Mapping[str, Estimate], stores: Stores) -> list[UserError]:
    """Returns what this machine has too little of to run these nodes: memory, GPU memory or disk. `items` and
    `estimates` have the same keys.

    The estimates are low rather than high, so what they ask for is needed.
    """
    found = []
    for on_gpu, of_whom in ((False, "this machine"), (True, "this GPU")):
        needed = {
            name: it.memory_bytes
            for name, it in estimates.items()
            if it.memory_bytes is not None and it.on_gpu == on_gpu
        }
        has = (gpu.memory_bytes() if on_gpu else psutil.virtual_memory().total) if needed else None
        if has is None:
            continue
        if over := sorted((name for name in needed if needed[name] > has), key=lambda name: -needed[name]):
            named = [f"{items[name].node.name} needs about {format_bytes(needed[name])}" for name in over[:MAX_NAMED]]
            more = f" (and {len(over) - MAX_NAMED} more)" if len(over) > MAX_NAMED else ""
            has_only = f"{of_whom} has {format_bytes(has)} of memory, {', '.join(named)}{more}"
            found.append(UserError(f"{has_only}; {_less_memory([items[name] for name in over])}", "model.path"))
    disk, place = total(estimates.values()).disk_bytes, stores.runs.root
    free = free_bytes(place)
    if disk > free:
        found.append(
            UserError(
                f"the results need about {format_bytes(disk)} of disk, {place} has {format_bytes(free)} free; "
                "make room, for example with `python -m pipeline.store gc`, or set a folder on another disk",
                "runs",
            )
        )
    return found


def _less_memory(items: Sequence[Planned]) -> str:
    """Returns what to change so that these nodes need less memory."""
    trainings = (it.node.config for it in items if isinstance(it.node.config, DenseOptions | FinetuneOptions))
    if not (training := next(trainings, None)):
        return "use a smaller model, shorter or fewer sequences at once, or another machine"
    option = training.option
    return (
        f"training needs less with model.dtype=bfloat16, {option}.bf16_updates=stochastic_rounding, "
        f"{option}.optimizer=adafactor, {option}.activation_checkpointing=true, {option}.micro_batch_size=1"
    )


def _check_early(item: Planned, model: Checkpoint, data: DataSet | None) -> None:
    structure = model.structure()
    if structure is not None and item.spec.check_early:
        item.spec.check_early(item.node.config, structure, data if _reads_source(item) else None)


def _check_data(entries: Mapping[str, Entry]) -> Check:
    def of_stage(item: Planned, model: Checkpoint, data: DataSet | None) -> None:
        if not _reads_source(item):
            return
        if check := getattr(importlib.import_module(item.spec.module), "check", None):
            check(item.node.config, model, data, **_tests(item, entries))

    return of_stage


def _reads_source(item: Planned) -> bool:
    """Returns whether its data, if it reads any, are the job's own rather than a corpus made by an earlier node."""
    return item.node.inputs.get("data", "data") in DATA_NODES


def working(plan: Plan) -> list[str]:
    """Returns the nodes that have to run, without the sources."""
    return [name for name, item in plan.items() if item.status == Status.TO_RUN and not item.spec.is_source]


def _sources(entries: Mapping[str, Entry]) -> tuple[Checkpoint | None, DataSet | None]:
    """Returns the model, and the data as the model reads them."""

    def artifact(*names: str) -> Artifact | None:
        entry = next((entries[name] for name in names if name in entries), None)
        return entry.artifact(STAGES[entry.stage].makes) if entry else None

    model, data = artifact("model"), artifact(*DATA_NODES)
    assert model is None or isinstance(model, Checkpoint)
    assert data is None or isinstance(data, DataSet)
    return model, data


def _tests(item: Planned, entries: Mapping[str, Entry]) -> dict[str, Artifact]:
    """Returns the items of the separate test data that a node reads, if it does."""
    node = item.node.inputs.get("test_data", "")
    return {"test_data": entries[node].artifact(STAGES[entries[node].stage].makes)} if node in entries else {}
