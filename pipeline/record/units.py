"""Unit and direction of the numbers that stages summarize their results with. The first of a stage is its headline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Unit(NamedTuple):
    unit: str = ""
    higher_is_better: bool | None = None
    """None where a number describes a result and ranks none."""


_SPARSITIES = {"sparsity": Unit("fraction"), "model_sparsity": Unit("fraction")}
_TRAINING = {
    "validation_loss": Unit("nats", False),
    "train_loss": Unit("nats", False),
    "steps": Unit(),
    "tokens": Unit("tokens"),
    "tokens_per_second": Unit("tokens/s", True),
    **_SPARSITIES,
}

UNITS: Mapping[str, Mapping[str, Unit]] = {
    "model": {"parameters": Unit(), "bytes": Unit("bytes"), **_SPARSITIES},
    "scratch": {"parameters": Unit(), "vocabulary": Unit()},
    "data": {f"{split}_{what}": unit for what, unit in (("rows", Unit("rows")), ("seconds", Unit("s")))
             for split in ("train", "validation", "test")},
    "prepare": {f"{split}_rows": Unit("rows") for split in ("train", "validation", "test")},
    "calibrate": {"samples": Unit("samples"), "real_tokens": Unit("tokens")},
    "dense": _TRAINING,
    "finetune": _TRAINING,
    "prune": {**_SPARSITIES, "mean_layer_error": Unit("", False), "prunable_share": Unit("fraction")},
    "quantize": {
        "weight_bytes": Unit("bytes", False),
        "sparsity": Unit("fraction"),
        "weight_error": Unit("", False),
        "quantized_linears": Unit(),
    },
    "evaluate": {f"{name}{end}": unit for end in ("", "_full_window") for name, unit in (
        ("perplexity", Unit("", False)), ("wer", Unit("%", False)), ("cer", Unit("%", False)),
        ("bleu", Unit("", True)), ("chrf", Unit("", True)),
    )},
    "benchmark": {
        "decode_speedup": Unit("x", True),
        "prefill_speedup": Unit("x", True),
        "decode_tokens_per_second": Unit("tokens/s", True),
        "prefill_ms": Unit("ms", False),
        "real_time_factor": Unit("x", True),
        "beam_tokens_per_second": Unit("tokens/s", True),
        "gigabytes_per_second": Unit("GB/s", True),
        "memory_bytes": Unit("bytes", False),
    },
}  # fmt: skip
"""By stage and by the name in its summary; of a benchmark by quantity, which each backend has with each model."""

LM_EVAL = {name: Unit("fraction", True) for name in ("exact_match", "acc", "acc_norm", "f1")}
"""By lm-eval's own name of the metric: those that are shares of the items."""
