"""From a configuration to the nodes of the DAG. A plain function: nothing is read, nothing is run.

model, data (-> prepare, for encoder-decoders) -> dense -> {dense_eval, calibrate} ->
(prune_k -> finetune_k, teacher = dense)* -> evaluate, quantize -> evaluate_q, benchmark.  Levels are nodes, so runs
with other targets share the rungs below. A model from scratch has its tokenizer, and so its node, from the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel

from engine import cpu
from engine.sources import library as engine_library
from pipeline import gpu
from pipeline.schema import Config
from stages.benchmark.names import BACKENDS
from stages.benchmark.spec import BenchmarkOptions
from stages.contracts import UserError
from stages.dense.spec import DenseOptions
from stages.evaluate.spec import EvaluateOptions
from stages.finetune.spec import CubicOptions, Distill, FinetuneOptions, Training
from stages.model.spec import ModelOptions
from stages.prepare.spec import PrepareOptions
from stages.prune.spec import PruneOptions, parse_pattern
from stages.schedule import rungs
from stages.scratch.spec import ScratchOptions

TASK_LOSS = Distill(ce=1.0, kd=0.0, squarehead=0.0, temperature=1.0, eps=0.0, normalize="layer", skip_first=0)


PREPARED = ("translation", "speech")
"""Data formats that models do not read as they are."""


BASELINE = "dense_eval"
"""The evaluation that all others are compared with."""
JUDGED_BY_BASELINE = ("calibrate", "prune", "finetune", "quantize")
"""Stages whose work nobody could judge without it: where it fails, they do not run."""


@dataclass(frozen=True)
class Node:
    name: str
    stage: str
    config: BaseModel
    inputs: dict[str, str] = field(default_factory=dict)
    """Role -> name of the node that fills it."""
    after: tuple[str, ...] = ()
    """Nodes that must not have failed before it runs, though it reads nothing of them. No part of its identity."""


Graph = dict[str, Node]
"""Nodes by name, in an order in which they can run."""


def resolve(config: Config, parallel_jobs: int = 1) -> Config:
    """Settles what depends on the machine before anything is fingerprinted: `auto` device, precision and runtime, 0
    threads. `parallel_jobs` on this machine; 0: they run on other ones, whose cores are not known."""
    if parallel_jobs:
        _check_threads(config)
    threads = config.threads or max(1, cpu.cores() // min(max(parallel_jobs, 1), cpu.cores()))
    device = config.device if config.device != "auto" else "cuda" if gpu.models() else "cpu"
    precision = "bf16" if device == "cuda" or cpu.has_bf16() else "fp32"
    int8_runtime = config.evaluate.int8_runtime
    if int8_runtime == "auto":
        int8_runtime = "engine" if config.evaluate.runtime == "engine" or engine_library() else "torch"

    def settle(section: BaseModel) -> BaseModel:
        if section.precision != "auto":  # type: ignore[attr-defined]
            return section
        in_bf16 = getattr(section, "bf16_updates", None) == "stochastic_rounding"
        return section.model_copy(update={"precision": "bf16" if in_bf16 else precision})

    return config.model_copy(
        update={
            "threads": threads,
            "device": device,
            "prune": settle(config.prune),
            "finetune": settle(config.finetune),
            "dense": config.dense.model_copy(update={"training": settle(config.dense.training)}),
            "evaluate": config.evaluate.model_copy(update={"int8_runtime": int8_runtime}),
            "benchmark": config.benchmark.model_copy(update={"threads": config.benchmark.threads or threads}),
        }
    )


def _check_threads(config: Config) -> None:
    most = cpu.most_threads()
    for option, asked in (("threads", config.threads), ("benchmark.threads", config.benchmark.threads)):
        if asked > most:
            raise UserError(f"got {asked}, this machine has {cpu.cores()} cores; expected at most {most}", option)


def build(config: Config) -> Graph:
    """The nodes of a resolved configuration. Raises UserError where its parts contradict each other."""
    graph: Graph = {}

    def add(name: str, stage: str, slice_: BaseModel, **inputs: str | None) -> str:
        after = (BASELINE,) if stage in JUDGED_BY_BASELINE and BASELINE in graph else ()
        node = Node(name, stage, slice_, {role: source for role, source in inputs.items() if source}, after)
        for known in graph.values():
            if (known.stage, known.config, known.inputs) == (stage, node.config, node.inputs):
                return known.name  # the same work under another name: one-shot is the first rung of some ladders
        graph[name] = node
        return name

    if config.model.scratch:
        add("data", "data", config.data)
        source = {key: getattr(config.model, key) for key in ScratchOptions.model_fields}
        add("model", "scratch", ScratchOptions(**source), data="data")
    else:
        add("model", "model", ModelOptions(**{key: getattr(config.model, key) for key in ModelOptions.model_fields}))
        add("data", "data", config.data)
    data = "data"
    if config.data.format in PREPARED:
        data = add("prepare", "prepare", PrepareOptions(), model="model", data="data")
    dense = "model"
    if not config.dense.skip:
        dense = add(
            "dense", "dense", DenseOptions(training=config.dense.training, distill=TASK_LOSS), model="model", data=data
        )
    judge = EvaluateOptions(**{key: getattr(config.evaluate, key) for key in EvaluateOptions.model_fields})
    dense_eval = add(BASELINE, "evaluate", judge, model=dense, data=data)

    def evaluate(name: str, model: str, judge: EvaluateOptions = judge) -> None:
        add(name, "evaluate", judge, model=model, data=data, baseline=dense_eval)

    calibration = None
    if _needs_calibration(config):
        calibration = add("calibrate", "calibrate", config.calibrate, model="model", data=data)
    for_pruning = calibration if config.prune.method != "magnitude" else None

    def prune(model: str, sparsity: float, name: str) -> str:
        slice_ = PruneOptions(prune=_pattern_at(config, sparsity), sparsity=sparsity)
        return add(name, "prune", slice_, model=model, calibration=for_pruning)

    def finetune(model: str, level: str, rung: int, cubic: CubicOptions | None = None) -> str:
        if not _trains(config.finetune):
            return model
        # another order of the data than the dense model and the rungs below saw
        training = config.finetune.model_copy(update={"seed": config.finetune.seed + rung})
        slice_ = FinetuneOptions(training=training, distill=config.distill, cubic=cubic)
        teacher = dense if config.distill.kd or config.distill.squarehead else None
        return add(
            f"finetune_{level}", "finetune", slice_, model=model, data=data, teacher=teacher,
            calibration=for_pruning if cubic else None,
        )  # fmt: skip

    sparse = dense
    if config.schedule.kind == "cubic":
        start = config.schedule.initial
        sparse = prune(dense, start, f"prune_{_level(config, start)}") if start else dense
        sparse = finetune(sparse, _level(config, config.sparsity), 1, _cubic(config))
    elif config.sparsity > 0:
        targets = rungs(config.schedule.levels, config.sparsity)
        for rung, sparsity in enumerate(targets, start=1):
            level = _level(config, sparsity)
            sparse = finetune(prune(sparse, sparsity, f"prune_{level}"), level, rung)
            if config.evaluate.every_rung and sparsity != targets[-1]:
                evaluate(f"evaluate_{level}", sparse)
    if config.evaluate.one_shot and config.sparsity > 0:
        evaluate("one_shot_eval", prune(dense, config.sparsity, "one_shot"))
    if sparse != dense:
        evaluate("evaluate", sparse)

    quantized = quantized_dense = None
    if config.quantize.scheme != "none":
        judge_int8 = judge.model_copy(update={"runtime": config.evaluate.int8_runtime})
        scales_from = calibration if config.quantize.smooth or config.quantize.skip_sensitive else None
        if config.quantize.dense or sparse == dense:
            quantized_dense = add("quantize_dense", "quantize", config.quantize, model=dense, calibration=scales_from)
            evaluate("dense_eval_q", quantized_dense, judge_int8)
        quantized = add("quantize", "quantize", config.quantize, model=sparse, calibration=scales_from)
        evaluate("evaluate_q", quantized, judge_int8)
    if config.benchmark.enabled:
        _check_backends(config.benchmark.backends)
        slice_ = BenchmarkOptions(**{key: getattr(config.benchmark, key) for key in BenchmarkOptions.model_fields})
        add("benchmark", "benchmark", slice_, data=data, dense=dense, sparse=sparse if sparse != dense else None,
            quantized=quantized, quantized_dense=quantized_dense)  # fmt: skip
    return graph


def _check_backends(backends: Sequence[str]) -> None:
    if unknown := [name for name in backends if name not in BACKENDS]:
        raise UserError(f"no backend {unknown[0]!r}; there are: {', '.join(BACKENDS)}", "benchmark.backends")


def ancestors(graph: Graph, name: str) -> set[str]:
    """The node and everything it needs. Raises UserError for an unknown name (option `until`)."""
    if name not in graph:
        raise UserError(f"no node {name!r} in this run; there are: {', '.join(graph)}", "until")
    found = {name}
    for source in graph[name].inputs.values():
        found |= ancestors(graph, source)
    return found


def _needs_calibration(config: Config) -> bool:
    prunes = config.sparsity > 0 and config.prune.method != "magnitude"
    quantizes = config.quantize.scheme != "none" and bool(config.quantize.smooth or config.quantize.skip_sensitive)
    return prunes or quantizes


def _trains(training: Training) -> bool:
    return training.steps > 0 or training.epochs > 0


def _level(config: Config, sparsity: float) -> str:
    """How a rung is called: `50`, `62.5`, or `2of4`."""
    if config.prune.pattern == "unstructured":
        return f"{100 * sparsity:g}"
    _, group = parse_pattern(config.prune.pattern)
    return f"{group - round(sparsity * group)}of{group}"


def _pattern_at(config: Config, sparsity: float) -> BaseModel:
    """The pruning rules of a rung: an N:M ladder keeps its M and lowers its N."""
    if config.prune.pattern == "unstructured":
        return config.prune
    return config.prune.model_copy(update={"pattern": _level(config, sparsity).replace("of", ":")})


def _cubic(config: Config) -> CubicOptions:
    schedule, training = config.schedule, config.finetune
    if training.epochs:
        raise UserError("a cubic schedule counts steps; give finetune.steps and set epochs to 0", "finetune.epochs")
    end = schedule.end_step or round(0.8 * training.steps)
    if not schedule.begin_step < end <= training.steps:
        raise UserError(
            f"the schedule ends at step {end}; expected between begin_step={schedule.begin_step} and "
            f"finetune.steps={training.steps}", "schedule.end_step",
        )  # fmt: skip
    if schedule.initial >= config.sparsity:
        raise UserError(f"starts at {schedule.initial:g}, not below sparsity={config.sparsity:g}", "schedule.initial")
    return CubicOptions(
        prune=config.prune,
        initial=schedule.initial,
        final=config.sparsity,
        begin_step=schedule.begin_step,
        end_step=end,
        update_every=schedule.update_every,
    )
