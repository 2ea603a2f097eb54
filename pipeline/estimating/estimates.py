"""Estimates time, memory and disk of every node that has to run.

Time is start-up plus work over speed. Work is floating-point operations by the stages' formulas. Speed and start-up are
what the same stage reached on this machine before: for about as much work (measured), or for more or less work, another
model, other data or other threads (rough). Where all earlier runs were far too small to tell, or there are none, the
speed is `FLOPS_PER_THREAD` (rough too, within a factor of several). Without the work or a result of the very same
settings, the time is unknown. Memory always comes from a formula; disk from earlier results of the stage and model, or
else from a formula.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Literal

from pipeline.disk import format_bytes
from pipeline.estimating.history import SOURCES, History, Past
from pipeline.estimating.speeds import Measured, reliable_seconds, rough_seconds
from pipeline.plan import Plan, Planned, Stores
from pipeline.record.status import Status
from pipeline.schema import Config
from stages import model_size
from stages.contracts import Corpus, PackedCorpus
from stages.cost import Setting, Workload
from stages.data.formats import FORMATS
from stages.index import STAGES
from stages.model.spec import ModelOptions
from stages.model_size import ModelSize
from stages.sources.identity import local

Basis = Literal["measured", "rough", "unknown"]

FLOPS_PER_THREAD = 50e9
"""Speed of a core with wide vectors in the large matrix products of these stages, where nothing was measured."""
SAME = 0.01
"""Relative difference of parameter counts up to which models are of one size."""


@dataclass(frozen=True)
class Estimate:
    seconds: float | None
    memory_bytes: float | None
    """Peak of the process, its libraries included."""
    disk_bytes: float | None
    """Size of the result. The two checkpoints of a running training, up to 12 bytes a parameter each, are deleted
    afterwards and not included."""
    basis: Basis
    """Names the source of `seconds`."""
    on_gpu: bool = False
    """Whether `memory_bytes` is needed on the GPU."""


@dataclass(frozen=True)
class Total:
    """Estimate of many nodes that run one after the other in one process."""

    seconds: float
    memory_bytes: float | None
    """Largest memory of the nodes that run on the processor."""
    gpu_bytes: float | None
    """Largest memory of the nodes that run on the GPU."""
    disk_bytes: float
    nodes: int
    rough: int
    """Nodes whose seconds are rough."""
    unknown: int
    """Nodes whose seconds are in no sum."""


def of_plan(plan: Plan, config: Config, stores: Stores) -> dict[str, Estimate]:
    """Returns an estimate for each node that has to run, by name."""
    return _estimates(plan, config, History(stores), set())


def of_jobs(jobs: Iterable[tuple[Plan, Config]]) -> dict[str, Estimate]:
    """Returns an estimate for each node that a sweep has to run, by fingerprint: shared nodes count once."""
    found: dict[str, Estimate] = {}
    histories: dict[tuple[str, str], History] = {}
    for plan, config in jobs:
        place = (config.runs, config.cache.folder)
        if place not in histories:
            histories[place] = History(Stores.of(config))
        new = _estimates(plan, config, histories[place], found.keys())
        found |= {plan[name].fingerprint: estimate for name, estimate in new.items()}
    return found


def _estimates(plan: Plan, config: Config, history: History, known: Container[str]) -> dict[str, Estimate]:
    size = _size(plan) or _stated_size(config)
    return {
        name: _estimate(item, plan, config, size, history)
        for name, item in plan.items()
        if item.status == Status.TO_RUN and item.fingerprint not in known
    }


def total(estimates: Iterable[Estimate]) -> Total:
    """Sums time and disk and takes the largest memory. Unknown parts are counted, not guessed."""
    found = list(estimates)
    known = [(one.memory_bytes, one.on_gpu) for one in found if one.memory_bytes is not None]
    return Total(
        seconds=sum(one.seconds or 0 for one in found),
        memory_bytes=max((needed for needed, on_gpu in known if not on_gpu), default=None),
        gpu_bytes=max((needed for needed, on_gpu in known if on_gpu), default=None),
        disk_bytes=sum(one.disk_bytes or 0 for one in found),
        nodes=len(found),
        rough=sum(one.basis == "rough" for one in found),
        unknown=sum(one.basis == "unknown" for one in found),
    )


def _estimate(item: Planned, plan: Plan, config: Config, size: ModelSize | None, history: History) -> Estimate:
    load = _planned_load(item, plan, config, history)
    seconds, basis = _seconds(item, load, size, config, history)
    if size is None or item.spec.makes is Corpus or item.node.stage in SOURCES:
        return Estimate(seconds, None, None, basis)
    written = [past.num_bytes for past in history.of(item.node.stage) if _is_size(past, size)]
    cost, setting = item.spec.cost, setting_of(config)
    disk = median(written) if written else cost.result_bytes(load, size, setting)
    on_gpu = config.device == "cuda" and cost.on_gpu(load)
    return Estimate(seconds, cost.memory_bytes(load, size, setting), disk, basis, on_gpu)


def setting_of(config: Config) -> Setting:
    window = config.data.speech.window if config.data.speech else ""
    return Setting(config.model.dtype, config.model.family, window)


def _seconds(
    item: Planned, load: Workload, size: ModelSize | None, config: Config, history: History
) -> tuple[float | None, Basis]:
    threads, cost = config.threads, item.spec.cost
    here = (past for past in history.of(item.node.stage) if past.device == config.device)
    pasts = [(past, _past_load(past, history)) for past in here]
    same_kind = [(past, then) for past, then in pasts if cost.kind(then) == cost.kind(load)]
    if size is None:
        again = [past for past, _ in same_kind if _is_same(past, item) and past.threads == threads]
        return (median(past.seconds for past in again), "measured") if again else (None, "unknown")

    def is_same_model(past: Past) -> bool:
        return _is_size(past, size) and past.threads == threads and past.version == item.spec.version

    def is_near(past: Past) -> bool:
        return is_same_model(past) and _data(past.inputs) == _data(item.inputs)

    if again := [past for past, _ in same_kind if is_near(past) and past.config == item.config]:
        return median(past.seconds for past in again), "measured"
    work = cost.operations(load, size.parameters)
    if work is None:
        return None, "unknown"
    runs = [run for past, then in same_kind if (run := Measured.of(past, then, cost))]
    if found := reliable_seconds((run for run in runs if is_near(run.past)), work, threads):
        return found, "measured"
    better_first = (lambda run: is_same_model(run.past), lambda run: run.past.threads == threads)
    if found := rough_seconds(runs, work, threads, better_first):
        return found, "rough"
    # the speed of a GPU is not known beforehand
    return (work / (FLOPS_PER_THREAD * threads), "rough") if config.device == "cpu" else (None, "unknown")


def _planned_load(item: Planned, plan: Plan, config: Config, history: History) -> Workload:
    sources = {role: plan[name] for role, name in item.node.inputs.items()}
    calibration = sources.get("calibration")
    return Workload(
        item.node.stage,
        item.config,
        inputs={role: source.node.stage for role, source in sources.items()},
        rows=_rows(plan, item, history),
        tests=_count(plan, "test"),
        calibration=calibration.config if calibration else None,
    )


def _past_load(past: Past, history: History) -> Workload:
    stages = {role: str(history.meta(key).get("stage", "")) for role, key in past.inputs.items()}
    data = history.meta(past.inputs.get("data", "")).get("metrics", {})
    calibration = history.meta(past.inputs.get("calibration", "")).get("config")
    return Workload(
        past.stage,
        past.config,
        inputs=stages,
        rows=past.facts.get("rows"),
        tests=_items(data, "test"),
        calibration=calibration,
    )


def _rows(plan: Plan, item: Planned, history: History) -> float | None:
    """Returns the rows of an epoch of training: as recorded by an earlier training on this data, else the number of
    items."""
    if not item.spec.trains:
        return None
    data = plan[item.node.inputs["data"]]
    length = item.config["training"]["sequence_length"]
    if data.spec.makes is PackedCorpus:
        return data.config["tokens"] / length or None
    for past in (past for name, spec in STAGES.items() if spec.trains for past in history.of(name)):
        same_rows = past.config["training"]["sequence_length"] == length and "rows" in past.facts
        if same_rows and _data(past.inputs) == data.fingerprint:
            return float(past.facts["rows"])
    is_text = "format" in data.config and FORMATS.get(data.config["format"]).rows == "texts"
    return None if is_text else _count(plan, "train")


def _count(plan: Plan, split: str) -> float | None:
    """Returns the number of items of a split, where the data are stored."""
    for name in ("prepare", "data"):
        entry = plan[name].entry if name in plan else None
        if entry:
            return _items(entry.meta["metrics"], split)
    return None


def _items(metrics: Mapping[str, float], split: str) -> float | None:
    return metrics.get(f"{split}_examples", metrics.get(f"{split}_rows"))


def _size(plan: Plan) -> ModelSize | None:
    """Returns the size of the plan's model, if it is stored or lies in a local folder."""
    model = plan.get("model")
    if model is None:
        return None
    if model.entry:
        return model_size.of_folder(model.entry.path)
    if isinstance(model.node.config, ModelOptions) and "digest" in model.config["identity"]:
        return model_size.of_folder(local(model.node.config.path))
    return None


def _stated_size(config: Config) -> ModelSize | None:
    """Returns the size that the configuration states for a model that is not here."""
    return ModelSize(**config.model.size.model_dump()) if config.model.size else None


def _is_size(past: Past, size: ModelSize) -> bool:
    return past.parameters is not None and abs(past.parameters - size.parameters) <= SAME * size.parameters


def _is_same(past: Past, item: Planned) -> bool:
    return past.config == item.config and past.inputs == item.inputs


def _data(inputs: Mapping[str, str]) -> str:
    return inputs.get("data", "")


def format_seconds(estimate: Estimate) -> str:
    """Formats an estimated time: `12 min`; `~12 min` where it is rough; `?` where it is unknown."""
    if estimate.seconds is None:
        return "?"
    return ("~" if estimate.basis == "rough" else "") + format_duration(estimate.seconds)


def format_duration(seconds: float) -> str:
    """Formats a duration with two digits: `45 s`, `12 min`, `3.5 h`, `2.1 days`."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.2g} h"
    return f"{seconds / 86400:,.0f} days" if seconds >= 10 * 86400 else f"{seconds / 86400:.1f} days"


def format_total(found: Total) -> str:
    """Formats a total in one line: `1.2 h (rough: 3 of 11 nodes), peak memory about 2.1 GB, 1.3 GB to store`; without
    any estimate, says how to get one."""
    if found.nodes and found.unknown == found.nodes:
        return "estimated: nothing yet; the size of the model is known once it is here (until=model)"
    counts = {"rough": found.rough, "unknown": found.unknown}
    doubts = [f"{word}: {count} of {found.nodes} nodes" for word, count in counts.items() if count]
    memory = "unknown" if found.memory_bytes is None else f"about {format_bytes(found.memory_bytes)}"
    memory += f", of the GPU about {format_bytes(found.gpu_bytes)}" if found.gpu_bytes is not None else ""
    return (
        f"estimated: {format_duration(found.seconds)}{' (' + ', '.join(doubts) + ')' if doubts else ''}, "
        f"peak memory {memory}, {format_bytes(found.disk_bytes)} to store"
    )
