"""Finds by one forward pass of a model which linears run, on what, and who feeds whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Wiring:
    shared: list[list[str]]
    """Linears that see the same input, in execution order."""
    norms: dict[int, str]
    """Index into `shared` -> the module with one weight for each feature whose output they all see."""
    norm_inputs: dict[str, tuple[Any, ...]]
    """Last input of each norm that ran."""
    dimensions: dict[str, int]
    """Number of dimensions of the inputs of each linear that ran; if not always 3, the first other number."""
    runs: Counter[str]
    """Number of runs of each module."""


@torch.inference_mode()
def wiring(model: nn.Module, inputs: Mapping[str, Tensor]) -> Wiring:
    """Determines the wiring by the identity of tensors, in one pass with `inputs` as the arguments of the model's
    forward."""
    alive: list[Any] = []
    readers: dict[tuple[int, int], list[str]] = {}
    writers: dict[tuple[int, int], str] = {}
    norm_inputs: dict[str, tuple[Any, ...]] = {}
    dimensions: dict[str, int] = {}
    runs: Counter[str] = Counter()

    def counts(name: str) -> Any:
        return lambda module, args: runs.update([name])

    def reads(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            alive.append(args[0])
            readers.setdefault(_identity(args[0]), []).append(name)
            before, now = dimensions.get(name, 3), args[0].dim()
            dimensions[name] = now if before == 3 else before

        return hook

    def writes(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                alive.append(output)
                writers[_identity(output)] = name
                norm_inputs[name] = args

        return hook

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(counts(name)))
        if isinstance(module, nn.Linear):
            handles.append(module.register_forward_pre_hook(reads(name)))
        elif _is_norm(module):
            handles.append(module.register_forward_hook(writes(name)))
    try:
        model(**inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    norms = {index: writers[key] for index, key in enumerate(readers) if key in writers}
    return Wiring(list(readers.values()), norms, norm_inputs, dimensions, runs)


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 1


def _identity(tensor: Tensor) -> tuple[int, int]:
    """Returns a key that is equal for views of the same numbers, as long as the tensor lives."""
    return tensor.data_ptr(), tensor.numel()
