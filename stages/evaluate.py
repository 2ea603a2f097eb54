"""Stage `evaluate`: perplexity and lm-eval tasks of one model, and their recovery against the dense model.

Models in floating point are computed in fp32, quantized ones in int8; by torch, or by the sparse engine.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from pipeline.contracts import Artifact, Checkpoint, Log, Metrics, TextData, UserError
from pipeline.schema import EvaluateSlice, Perplexity
from stages import checkpoints, engine_models, families, tokens
from stages.evaluation import lm_eval_tasks, perplexity
from stages.families import Family

Measured = dict[str, dict[str, Any]]
"""`{name: {"value", "stderr" | None, "protocol"}}`, what metrics.json holds."""


def run(config: EvaluateSlice, inputs: Mapping[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """`model` (Checkpoint), `data` (TextData) and optionally `baseline` (Metrics of the dense model) -> Metrics."""
    source, data, baseline = inputs["model"], inputs["data"], inputs.get("baseline")
    assert isinstance(source, Checkpoint)
    assert isinstance(data, TextData)
    family = families.of(source.path)
    tokenizer = family.tokenizer(source.path)
    model, precision = _load(source, config.runtime)
    measured: Measured = {}
    if config.perplexity:
        measured["perplexity"] = _perplexity(config.perplexity, config.batch_size, model, family, tokenizer, data, log)
    for task in config.tasks:
        measured |= lm_eval_tasks.run(task, model, tokenizer, data, log)
    for metric in measured.values():
        metric["protocol"] |= {"precision": precision, "threads": torch.get_num_threads(), "runtime": config.runtime}
    (out / "metrics.json").write_text(json.dumps(measured, indent=1), encoding="utf-8")
    log.facts(data_digest=data.digest)
    summary = {name: metric["value"] for name, metric in measured.items()}
    summary |= {f"{name}_stderr": m["stderr"] for name, m in measured.items() if m["stderr"] is not None}
    if isinstance(baseline, Metrics):
        summary |= recovery(measured, baseline.values())
    return summary


def _load(source: Checkpoint, runtime: str) -> tuple[Any, str]:
    """The model, and the precision of its quantized or prunable linears."""
    precision: Literal["int8", "fp32"] = "int8" if source.quantization else "fp32"
    if runtime == "engine":
        return engine_models.load(source, precision, "evaluate.runtime"), precision
    return checkpoints.load(source, torch.float32), precision


def recovery(measured: Measured, dense: Measured) -> dict[str, float]:
    """Percent of the dense model's quality, `{name}_recovery`: value / dense, or dense / value where lower is better.

    A metric on which the better of the two models has 0 has no recovery.
    """
    found = {}
    for name, metric in measured.items():
        ours, theirs = metric["value"], dense[name]["value"]
        over, under = (ours, theirs) if lm_eval_tasks.higher_is_better(metric) else (theirs, ours)
        if under:
            found[f"{name}_recovery"] = 100 * over / under
    return found


def _perplexity(
    config: Perplexity, batch_size: int, model: Any, family: Family, tokenizer: Any, data: TextData, log: Log
) -> dict[str, Any]:
    checkpoints.check_length(family.context(model), config.length, "evaluate.perplexity.length")
    ids_NL = tokens.stream(data, config.split, tokenizer, config.length, "evaluate.perplexity.length")
    if config.windows > len(ids_NL):
        raise UserError(
            f"the split {config.split!r} has {len(ids_NL)} windows of {config.length} tokens, not {config.windows}",
            "evaluate.perplexity.windows",
        )
    ids_NL = ids_NL[: config.windows or None]
    start = time.perf_counter()
    nll_N = perplexity.window_losses(model, family, ids_NL, batch_size, log)
    log.facts(perplexity_tokens_per_second=ids_NL.numel() / (time.perf_counter() - start))
    if not math.isfinite(float(nll_N.mean())) or float(nll_N.mean()) > 700:
        raise UserError(
            f"the mean negative log-likelihood is {float(nll_N.mean()):g}: this model is broken", "evaluate.perplexity"
        )
    found = perplexity.estimate(nll_N)
    return {
        "value": found.value,
        "stderr": found.stderr,
        "protocol": {
            "kind": "token perplexity",
            "higher_is_better": False,
            "split": config.split,
            "joined_by": "\n\n",
            "length": config.length,
            "windows": len(ids_NL),
            "overlap": 0,
            "tail": "dropped",
            "predicted_tokens": len(ids_NL) * (config.length - 1),
            "data_digest": data.digest,
            "stderr": "delta method, windows independent",
        },
    }
