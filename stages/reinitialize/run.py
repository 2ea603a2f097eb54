"""Stage `reinitialize`: new random weights under the masks of a pruned model.

It tests whether the starting point of sparse pretraining matters: the same masks and tokens, without what the dense
model knew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from engine.unfused import unfuse_
from stages import checkpoints, families, masks
from stages.contracts import Artifact, Checkpoint, Log
from stages.reinitialize.spec import ReinitializeOptions


def run(config: ReinitializeOptions, inputs: Mapping[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Returns a checkpoint of the same architecture with weights drawn as transformers initialises them.

    Input: `model` (Checkpoint).
    """
    source = inputs["model"]
    assert isinstance(source, Checkpoint)
    family = families.of(source.path)
    old = checkpoints.load(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = family.auto_class.from_config(old.config).eval()
    unfuse_(model)
    model = family.complete(model, source.path).to(old.dtype)
    pruned = masks.of(source)
    masks.apply_(model, pruned)
    checkpoints.save(model, source, pruned, out)
    log.facts(masks_digest=masks.digest(pruned))
    total = sum(parameter.numel() for parameter in model.parameters())
    zeros = sum(int((~keep_OI).sum()) for keep_OI in pruned.values())
    return {"sparsity": masks.sparsity(pruned), "model_sparsity": zeros / total}
