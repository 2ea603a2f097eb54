"""How much a stage has to do, by formulas that a reader can check: operations, bytes of memory, bytes of its result.

Only proportions matter where speeds were measured, since those are counted by the same formulas. P: parameters of the
whole model. A forward pass costs 2 P operations a token, a backward pass twice that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.estimating.model_size import ModelSize
from pipeline.schema import Config

DECODING = 8
"""A decoded token waits for the weights and costs about so many of a long row."""
ANSWER = 128
"""Tokens of a question, and of an answer to it."""
LIBRARIES = 0.6e9
"""Bytes of a process with PyTorch and transformers before any model."""
ACTIVATIONS = 34
"""Elements that the backward pass needs of each token and block, times the hidden size (arXiv 2205.05198)."""
MATRICES = 5
"""The same of attention matrices, times heads and length; T5's attention alone keeps them."""
BACKEND_BYTES = {"bf16": 2.0, "int8": 1.0, "w8a8": 1.0, "head": 1.0, "csr": 8.0}
"""A weight in a benchmarked backend, by the end of its name; 4 in others."""
TWICE = 3.5
"""Hearing clips in windows of their own and in full ones, over the former alone."""
WINDOW_POSITIONS = {"full": 1500, "clip": 250}
"""Of Whisper's encoder for one clip; that of clips about five seconds long."""
ROUNDING = 0.5e9
"""Bytes of the fp32 values that stochastic rounding holds at a time."""
SMALL = 1e6
"""Bytes of a result that holds numbers only; less, in fact."""


@dataclass(frozen=True)
class Workload:
    """What a stage is given, without its model."""

    stage: str
    kind: str
    """Runs of another kind have another speed: with or without a teacher, torch or engine, which pruner, whose
    backends."""
    config: Mapping[str, Any]
    """Its slice."""
    rows: float | None
    """Of an epoch of training."""
    tests: float | None
    """Items of the test split."""
    calibration: Mapping[str, Any] | None
    """Slice of the calibration that it reads."""
    inputs: Mapping[str, str]
    """Role -> stage that made it."""

    @classmethod
    def of(
        cls, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str], rows: float | None,
        tests: float | None, calibration: Mapping[str, Any] | None,
    ) -> Workload:  # fmt: skip
        makers = sorted({name.partition("_")[0] for name in config.get("backends", [])})
        kinds = {
            "benchmark": " ".join(makers),
            "finetune": "teacher" if "teacher" in inputs else "",
            "evaluate": f"{config.get('runtime', '')} {'int8' if inputs.get('model') == 'quantize' else ''}",
            "prune": str(config.get("prune", {}).get("method", "")),
            "quantize": f"{config.get('smooth', 0) > 0} {config.get('skip_sensitive', 0) > 0}",
        }
        return cls(stage, kinds.get(stage, ""), config, rows, tests, calibration, inputs)


def operations(load: Workload, parameters: float) -> float | None:
    """Of a run of the stage; None where nothing tells how much there is to do."""
    config: Any = load.config
    p = parameters
    match load.stage:
        case "dense" | "finetune":
            return _training(load, p)
        case "prune":
            if config["prune"]["method"] == "magnitude":
                return 200 * p
            # two forward passes, and Hessians that cost about one
            return None if load.calibration is None else 6 * p * _tokens(load.calibration)
        case "calibrate":
            return 1e6 * float(config["samples"])
        case "quantize":
            return 500 * p
        case "evaluate":
            return _evaluation(load, p)
        case "benchmark":
            models = sum(role in load.inputs for role in ("dense", "sparse"))
            passes = (config["rounds"] + config["warmup"]) * len(config["backends"]) * models
            return 2 * p * float(passes * (config["prompt_tokens"] + DECODING * config["new_tokens"]))
    return None


def _training(load: Workload, p: float) -> float | None:
    training = load.config["training"]
    steps, length = training["steps"], training["sequence_length"]
    if training["epochs"]:
        if load.rows is None:
            return None
        steps = training["epochs"] * load.rows / training["batch_size"]
    validations = 1 + (steps // training["eval_every"] if training["eval_every"] else 0)
    per_token = 6 * p + (2 * p if "teacher" in load.inputs else 0)
    sequences = steps * training["batch_size"] * per_token + validations * training["eval_windows"] * 2 * p
    return float(length * sequences)


def _evaluation(load: Workload, p: float) -> float | None:
    """None where all of a data set is asked for and its size is not known."""
    config, tokens = load.config, 0.0
    if asked := config.get("perplexity"):
        if not asked["windows"]:
            return None
        tokens += asked["windows"] * asked["length"]
    answers = [(task["limit"], ANSWER, 1) for task in config["tasks"]]
    if writes := config.get("generation"):
        beams = writes["beams"] * (TWICE if writes["full_window"] else 1)
        answers.append((writes["limit"], writes["max_new_tokens"] / 2, beams))
    for limit, new_tokens, beams in answers:
        items = limit or load.tests
        if items is None:
            return None
        tokens += items * (ANSWER + DECODING * new_tokens * beams)
    return 2 * p * tokens


def _tokens(calibration: Mapping[str, Any]) -> float:
    return float(calibration["samples"] * calibration["length"])


def memory_bytes(load: Workload, size: ModelSize, config: Config) -> float:
    """Peak of the process: weights by their copies, optimizer, activations, logits; libraries."""
    p = size.parameters
    weights = p * (4 if config.model.dtype == "float32" else 2)
    match load.stage:
        case "dense" | "finetune":
            return LIBRARIES + _training_memory(load, size, weights, config)
        case "prune":
            states = _tokens(load.calibration) * size.hidden * 4 * 2 if load.calibration else 0
            return LIBRARIES + weights + p + states
        case "quantize":
            return LIBRARIES + 2 * weights
        case "evaluate":
            length = (load.config["perplexity"] or {}).get("length", 2 * ANSWER)
            return float(LIBRARIES + 4 * p + load.config["batch_size"] * length * size.vocabulary * 4 * 2)
        case "benchmark":
            models = sum(role in load.inputs for role in ("dense", "sparse"))
            copies = sum(BACKEND_BYTES.get(name.rpartition("_")[2], 4.0) for name in load.config["backends"])
            return LIBRARIES + models * p * copies
    return LIBRARIES


def _training_memory(load: Workload, size: ModelSize, weights: float, config: Config) -> float:
    training, p = load.config["training"], size.parameters
    states = 8 * p if training["optimizer"] == "adamw" else 0
    bf16 = training["precision"] == "bf16"
    copies = training["bf16_updates"] == "fp32_master"
    if copies and not bf16:
        weights = 4 * p
    updates = weights  # the gradients
    if weights < 4 * p:
        # gradients and copies in fp32, or neither but for some at a time
        updates = 8 * p if copies else weights + ROUNDING
    cast, width = (2 * p, 2) if bf16 else (0, 4)
    teacher = weights + cast if "teacher" in load.inputs else 0
    masks = p if load.stage == "finetune" else 0
    window = WINDOW_POSITIONS[config.data.speech.window] if config.data.speech else 0
    tokens = training["micro_batch_size"] * (training["sequence_length"] + window)
    kept = (2 if training["activation_checkpointing"] else ACTIVATIONS) * size.hidden
    if config.model.family == "t5" and not training["activation_checkpointing"]:
        kept += MATRICES * size.heads * training["sequence_length"]
    activations = tokens * size.layers * kept * width
    logits = training["micro_batch_size"] * training["sequence_length"] * size.vocabulary * 4 * 3
    return float(weights + updates + states + cast + teacher + masks + activations + logits)


def result_bytes(load: Workload, size: ModelSize, config: Config) -> float | None:
    """Of what the stage stores; None where that depends on the data."""
    weights = size.parameters * (4 if config.model.dtype == "float32" else 2)
    match load.stage:
        case "dense":
            return weights
        case "prune" | "finetune":
            return weights + size.parameters / 8
        case "quantize":
            return size.parameters + size.vocabulary * size.hidden * 4
        case "evaluate" | "benchmark":
            return SMALL
    return None
