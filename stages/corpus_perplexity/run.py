"""Stage `corpus_perplexity`: evaluates a base, or a foundation, before it meets a task."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stages import checkpoints, devices, families, packed
from stages.contracts import Artifact, Checkpoint, Log, Metrics, PackedCorpus
from stages.corpus_perplexity.spec import CorpusPerplexityOptions
from stages.evaluate.perplexity import estimate, window_losses


def run(config: CorpusPerplexityOptions, inputs: Mapping[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Computes `perplexity_SOURCE`, with the recovery over the baseline in the summary.

    Inputs: `model` (Checkpoint), `data` (PackedCorpus) and optionally `baseline` (Metrics of the same stage). Output:
    Metrics.
    """
    source, data, baseline = inputs["model"], inputs["data"], inputs.get("baseline")
    assert isinstance(source, Checkpoint)
    assert isinstance(data, PackedCorpus)
    family = families.of(source.path)
    model = checkpoints.load(source, torch.float32).to(devices.of(log.device))
    checkpoints.check_length(family.context(model), config.length, "foundation.training.sequence_length")
    measured: dict[str, dict[str, Any]] = {}
    for name in data.index()["validation"]:
        rows = packed.rows(data, f"validation.{name}", config.length, False, "foundation.training.sequence_length")
        count = min(config.windows, len(rows))
        nll_N = window_losses(model, family, rows.take(torch.arange(count))["input_ids"], config.batch_size, log)
        found = estimate(nll_N)
        measured[f"perplexity_{name}"] = {
            "value": found.value,
            "stderr": found.stderr,
            "protocol": {
                "kind": "token perplexity of packed validation documents",
                "higher_is_better": False,
                "source": name,
                "length": config.length,
                "windows": count,
                "data_digest": data.digest,
                "stderr": "delta method, windows independent",
            },
        }
    (out / "metrics.json").write_text(json.dumps(measured, indent=1), encoding="utf-8")
    summary = {name: float(metric["value"]) for name, metric in measured.items()}
    if isinstance(baseline, Metrics):
        dense = baseline.values()
        summary |= {f"{name}_recovery": 100 * dense[name]["value"] / value for name, value in summary.items()}
    return summary
