"""SmoothQuant (arXiv 2211.10438, section 4): outliers of activations move into the weights before rounding.

`y = (x / s) (s ∘ W)ᵀ` is the same function for any s > 0; s_j = max|x_j|^alpha / max|W_j|^(1 - alpha) balances the
ranges. Linears that share an input share s. Scaling columns keeps zeros zero.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.contracts import Log
from stages.families import Batch, Family


def smoothing_scale(amax_I: Tensor, W_amax_I: Tensor, alpha: float) -> Tensor:
    """`s_I` (fp32, > 0). An input that never fires, or whose weights are all pruned, keeps scale 1."""
    s_I = amax_I.float() ** alpha / W_amax_I.float() ** (1 - alpha)
    return torch.where((amax_I > 0) & (W_amax_I > 0) & torch.isfinite(s_I), s_I, torch.ones_like(s_I)).clamp_min_(1e-5)


@dataclass(frozen=True)
class Smoothing:
    """What was done to a model: function-preserving, before any rounding."""

    folded: dict[str, list[str]]
    """Norm -> the linears it feeds: their scale now sits in the norm and in their weights."""
    stored: dict[str, Tensor]
    """Linear -> `s_I` to divide its input by; its weights are still to be multiplied (`Int8Linear.of`)."""


def smooth_(
    model: nn.Module, family: Family, targets: Collection[str], batches: Sequence[Batch], alpha: float, log: Log
) -> Smoothing:
    """Smooths the linears `targets` by the activation maxima of `batches`, folding into norms where that is exact.

    A scale is folded when every reader of the norm is a linear to scale; that nobody else reads it (a residual, a norm
    that adds 1 to its weight) is verified on the model's output, and the fold undone where it is not so.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = wiring(model, family, batches[0])
    amax = _maxima(model, family, {name: linears[name] for name in targets}, batches, log)
    scales: dict[int, Tensor] = {}
    for index, names in enumerate(found.shared):
        chosen = [name for name in names if name in targets]
        if chosen:
            W_amax_I = torch.stack([linears[name].weight.detach().abs().amax(0) for name in chosen]).amax(0)
            scales[index] = smoothing_scale(amax[chosen[0]], W_amax_I, alpha)
    prunable = family.prunable(model)
    foldable = [i for i in scales if i in found.norms and all(name in prunable for name in found.shared[i])]
    folded: dict[str, list[str]] = {}
    probe = _probe(batches[0])
    for kind in sorted({_kind(found.norms[i]) for i in foldable}):
        indices = [i for i in foldable if _kind(found.norms[i]) == kind]
        members = [found.norms[i] for i in indices] + [name for i in indices for name in found.shared[i]]
        before = _logits(model, family, probe)
        kept = {name: copy.deepcopy(model.get_submodule(name).state_dict()) for name in members}
        for i in indices:
            fold_(model.get_submodule(found.norms[i]), [linears[name] for name in found.shared[i]], scales[i])
        if _same(before, _logits(model, family, probe)):
            folded |= {found.norms[i]: found.shared[i] for i in indices}
        else:
            log.note(f"SmoothQuant: the scales of {kind} do not fold, they are stored with the linears")
            for name, state in kept.items():
                model.get_submodule(name).load_state_dict(state)
    inside = {name for names in folded.values() for name in names}
    stored = {
        name: s_I for i, s_I in scales.items() for name in found.shared[i] if name in targets and name not in inside
    }
    return Smoothing(folded, stored)


@dataclass
class Wiring:
    """What one forward pass shows of a model."""

    shared: list[list[str]]
    """Linears that see the same input, in execution order."""
    norms: dict[int, str]
    """Index into `shared` -> the module with one weight for each feature whose output they all see."""


@torch.inference_mode()
def wiring(model: nn.Module, family: Family, batch: Batch) -> Wiring:
    """Tells by the identity of tensors, in one short pass, who feeds whom."""
    alive: list[Tensor] = []
    readers: dict[tuple[int, int], list[str]] = {}
    writers: dict[tuple[int, int], str] = {}

    def reads(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            alive.append(args[0])
            readers.setdefault(_identity(args[0]), []).append(name)

        return hook

    def writes(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            alive.append(output)
            writers[_identity(output)] = name

        return hook

    handles = []
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear):
            handles.append(module.register_forward_pre_hook(reads(name)))
        elif isinstance(weight, nn.Parameter) and weight.dim() == 1:
            handles.append(module.register_forward_hook(writes(name)))
    try:
        model(**family.inputs(_probe(batch)), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    shared = list(readers.values())
    norms = {index: writers[key] for index, key in enumerate(readers) if key in writers}
    return Wiring(shared, norms)


@torch.inference_mode()
def _maxima(
    model: Any, family: Family, linears: Mapping[str, nn.Linear], batches: Sequence[Batch], log: Log
) -> dict[str, Tensor]:
    """`amax_I` of each linear's input over the tokens in use."""
    found: dict[str, Tensor] = {}
    batch: Batch = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            use_T = family.read_by(batch, name).flatten()
            amax_I = args[0].reshape(-1, args[0].shape[-1])[use_T].abs().amax(0).float()
            found[name] = torch.maximum(found[name], amax_I) if name in found else amax_I

        return hook

    handles = [linear.register_forward_pre_hook(watch(name)) for name, linear in linears.items()]
    try:
        with log.bar("activation ranges", total=len(batches), unit="batch") as bar:
            for batch in batches:
                family.hidden(model, batch)
                bar.advance()
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def fold_(norm: nn.Module, linears: Sequence[nn.Linear], s_I: Tensor) -> None:
    """Divides the norm's output by `s_I` and multiplies the linears' columns by it, in place."""
    for _, parameter_I in norm.named_parameters():
        parameter_I.copy_(parameter_I / s_I)
    for linear in linears:
        linear.weight.mul_(s_I)


def _probe(batch: Batch) -> Batch:
    return {name: tensor[:1] for name, tensor in batch.items()}


@torch.inference_mode()
def _logits(model: nn.Module, family: Family, batch: Batch) -> Tensor:
    logits_BTV: Tensor = model(**family.inputs(batch), use_cache=False).logits
    return logits_BTV


def _same(a: Tensor, b: Tensor) -> bool:
    """Up to fp32 rounding through the whole depth of the model."""
    return bool((a - b).abs().max() <= 1e-3 * a.abs().max())


def _kind(name: str) -> str:
    """`model.layers.3.input_layernorm` -> `model.layers.*.input_layernorm`."""
    return re.sub(r"\.\d+\.", ".*.", name)


def _identity(tensor: Tensor) -> tuple[int, int]:
    """Equal for views of the same numbers, as long as the tensor lives."""
    return tensor.data_ptr(), tensor.numel()
