"""Estimates the cost of evaluation: forward passes over windows, and answers that are decoded token by token."""

from __future__ import annotations

from stages.cost import ANSWER, DECODING, LIBRARIES, SMALL, Cost, Setting, Workload
from stages.model_size import ModelSize

FULL_WINDOW_COST_RATIO = 3.5
"""Cost of evaluating clips both in windows of their own and in full ones, over the former alone."""


class EvaluateCost(Cost):
    def kind(self, load: Workload) -> str:
        return f"{load.config.get('runtime', '')} {'int8' if load.inputs.get('model') == 'quantize' else ''}"

    def on_gpu(self, load: Workload) -> bool:
        """Int8 models and the engine use the CPU."""
        return load.config.get("runtime") == "torch" and load.inputs.get("model") != "quantize"

    def operations(self, load: Workload, parameters: float) -> float | None:
        """Returns None if all of a data set of unknown size is evaluated."""
        config, tokens = load.config, 0.0
        if asked := config.get("perplexity"):
            if not asked["windows"]:
                return None
            tokens += asked["windows"] * asked["length"]
        answers = [(task["limit"], ANSWER, 1) for task in config["tasks"]]
        if writes := config.get("generation"):
            beams = writes["beams"] * (FULL_WINDOW_COST_RATIO if writes["full_window"] else 1)
            answers.append((writes["limit"], writes["max_new_tokens"] / 2, beams))
        for metric in (metric for metric in config.get("metrics", ()) if "limit" in metric):
            written = metric.get("max_new_tokens", 0)
            answers.append((metric.get("limit", 0), written / 2, metric.get("samples", 1)))
        for limit, new_tokens, beams in answers:
            items = limit or load.tests
            if items is None:
                return None
            tokens += items * (ANSWER + DECODING * new_tokens * beams)
        return 2 * parameters * tokens

    def memory_bytes(self, load: Workload, size: ModelSize, setting: Setting) -> float:
        length = (load.config["perplexity"] or {}).get("length", 2 * ANSWER)
        return float(LIBRARIES + 4 * size.parameters + load.config["batch_size"] * length * size.vocabulary * 4 * 2)

    def result_bytes(self, load: Workload, size: ModelSize, setting: Setting) -> float:
        return SMALL
