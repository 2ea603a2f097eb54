"""Measures which linears suffer most from quantization: one at a time, on a few calibration windows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from stages.contracts import Log
from stages.families import Batch, Family
from stages.tokens import IGNORED


@torch.inference_mode()
def loss_increases(
    model: nn.Module,
    family: Family,
    targets: Collection[str],
    batch: Batch,
    quantized: Callable[[nn.Linear], nn.Module],
    log: Log,
) -> dict[str, float]:
    """Returns for each linear of `targets` the mean loss in nats a token with it alone `quantized`, minus that of the
    model.

    Logs each as metric `loss_increase` at the linear's index in execution order. The model is left unchanged.
    """
    blocks = family.blocks(model)
    outputs: dict[str, Any] = {}
    handles = [
        block.register_forward_hook(lambda module, args, output, name=name: outputs.__setitem__(name, output))
        for name, block in blocks
    ]
    base = _loss(model, family, batch)
    for handle in handles:
        handle.remove()
    increases: dict[str, float] = {}
    with log.bar("sensitivity", total=len(targets), unit="linear") as bar:
        for step, (name, linear) in enumerate(family.prunable(model).items()):
            if name not in targets:
                continue
            before = [(block_name, block) for block_name, block in blocks[: _block_of(name, blocks)]]
            with _returning(before, outputs), _replaced(model, name, quantized(linear)):
                increases[name] = _loss(model, family, batch) - base
            log.metrics({"loss_increase": increases[name]}, step)
            bar.advance(loss_increase=increases[name])
    return increases


def _loss(model: nn.Module, family: Family, batch: Batch) -> float:
    logits_BTV = model(**family.inputs(batch), use_cache=False).logits
    logits_BTV, labels_BT = family.logits_and_labels(logits_BTV, batch["labels"])
    nll = nn.functional.cross_entropy(logits_BTV.float().flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED)
    return float(nll)


def _block_of(name: str, blocks: list[tuple[str, nn.Module]]) -> int:
    return next(i for i, (block_name, _) in enumerate(blocks) if name.startswith(block_name + "."))


@contextmanager
def _returning(blocks: list[tuple[str, nn.Module]], outputs: Mapping[str, Any]) -> Iterator[None]:
    """Makes the blocks return their earlier outputs instead of computing, so that nothing before the change runs
    again."""
    for name, block in blocks:
        block.forward = lambda *args, name=name, **kwargs: outputs[name]
    try:
        yield
    finally:
        for _, block in blocks:
            del block.forward


@contextmanager
def _replaced(model: nn.Module, name: str, module: nn.Module) -> Iterator[None]:
    original = model.get_submodule(name)
    model.set_submodule(name, module)
    try:
        yield
    finally:
        model.set_submodule(name, original)
