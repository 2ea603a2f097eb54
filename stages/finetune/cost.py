"""Estimates the cost of training, dense or sparse: forward and backward passes, and a teacher's forward passes."""

from __future__ import annotations

from stages.cost import LIBRARIES, Cost, Setting, Workload
from stages.model.families import FAMILIES
from stages.model_size import ModelSize

ACTIVATIONS = 34
"""Elements that the backward pass needs of each token and block, times the hidden size (arXiv 2205.05198)."""
MATRICES = 5
"""The same of attention matrices, times heads and length; families with `keeps_attention` alone keep them."""
WINDOW_POSITIONS = {"full": 1500, "clip": 250, "": 0}
"""Positions of Whisper's encoder for one clip, assumed to be about five seconds long."""
ROUNDING = 0.5e9
"""Bytes of the fp32 values that stochastic rounding holds at a time."""


class TrainingCost(Cost):
    def __init__(self, masked: bool) -> None:
        self.masked = masked

    def kind(self, load: Workload) -> str:
        return "teacher" if "teacher" in load.inputs else ""

    def on_gpu(self, load: Workload) -> bool:
        return True

    def operations(self, load: Workload, parameters: float) -> float | None:
        """Returns None for epochs of data whose size is not known."""
        training = load.config["training"]
        steps, length = training["steps"], training["sequence_length"]
        if training.get("tokens"):
            steps = training["tokens"] / (training["batch_size"] * length)
        if training["epochs"]:
            if load.rows is None:
                return None
            steps = training["epochs"] * load.rows / training["batch_size"]
        validations = 1 + (steps // training["eval_every"] if training["eval_every"] else 0)
        per_token = 6 * parameters + (2 * parameters if "teacher" in load.inputs else 0)
        sequences = steps * training["batch_size"] * per_token + validations * training["eval_windows"] * 2 * parameters
        return float(length * sequences)

    def memory_bytes(self, load: Workload, size: ModelSize, setting: Setting) -> float:
        training, p = load.config["training"], size.parameters
        weights = p * setting.weight_bytes
        states = 8 * p if training["optimizer"] == "adamw" else 0
        bf16 = training["precision"] == "bf16"
        copies = training["bf16_updates"] == "fp32_master"
        if copies and not bf16:
            weights = 4 * p
        updates: float = weights  # the gradients
        if weights < 4 * p:
            # gradients and copies in fp32, or neither but for some at a time
            updates = 8 * p if copies else weights + ROUNDING
        cast, width = (2 * p if weights == 4 * p else 0, 2) if bf16 else (0, 4)
        teacher = (2 * p if bf16 else weights) if "teacher" in load.inputs else 0  # its linears are rounded once
        masks = p if self.masked else 0
        tokens = training["micro_batch_size"] * (training["sequence_length"] + WINDOW_POSITIONS[setting.window])
        kept = (2 if training["activation_checkpointing"] else ACTIVATIONS) * size.hidden
        if FAMILIES.get(setting.family).keeps_attention and not training["activation_checkpointing"]:
            kept += MATRICES * size.heads * training["sequence_length"]
        activations = tokens * size.layers * kept * width
        logits = training["micro_batch_size"] * training["sequence_length"] * size.vocabulary * 4 * 3
        return float(LIBRARIES + weights + updates + states + cast + teacher + masks + activations + logits)

    def result_bytes(self, load: Workload, size: ModelSize, setting: Setting) -> float:
        return size.parameters * (setting.weight_bytes + (1 / 8 if self.masked else 0))
