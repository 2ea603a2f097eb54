"""SmoothQuant (arXiv 2211.10438, section 4): moves outliers of activations into the weights before rounding.

`y = (x / s) (s ∘ W)ᵀ` is the same function for any s > 0; s_j = max|x_j|^alpha / max|W_j|^(1 - alpha) balances the
ranges. Linears that share an input share s. Scaling columns keeps zeros zero. The producer of x is divided by s; where
that is impossible (`stages.quantize.folding`), the linears stay as they are: W8A8 checkpoints have no place for s.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages.contracts import Log
from stages.families import Batch, Family
from stages.quantize.folding import Fold, fold_, folds
from stages.quantize.wiring import wiring

PROBE_TOKENS = 64
"""Tokens of one sample: enough to show which module reads what."""


def smoothing_scale(amax_I: Tensor, W_amax_I: Tensor, alpha: float) -> Tensor:
    """Returns `s_I` (fp32, > 0). An input that is always 0, or whose weights are all pruned, keeps scale 1."""
    s_I = amax_I.float() ** alpha / W_amax_I.float() ** (1 - alpha)
    return torch.where((amax_I > 0) & (W_amax_I > 0) & torch.isfinite(s_I), s_I, torch.ones_like(s_I)).clamp_min_(1e-5)


@dataclass(frozen=True)
class Smoothing:
    """Changes to a model: function-preserving, before any rounding."""

    folded: dict[str, list[str]]
    """Norm or linear -> the linears it feeds: their scale is now folded into it and their weights."""
    unsmoothed: list[str]
    """The linears to quantize whose scale cannot be folded."""


def smooth_(
    model: Any,
    family: Family,
    targets: Collection[str],
    batches: Sequence[Batch],
    alpha: float,
    stored: torch.dtype,
    log: Log,
) -> Smoothing:
    """Smooths the linears `targets` by the activation maxima of `batches`, wherever a scale folds exactly. `stored` is
    the dtype in which norms will be stored."""
    linears = family.prunable(model)
    amax = _maxima(model, family, {name: linears[name] for name in targets}, batches, log)
    inputs = family.inputs(_probe(batches[0]))
    exact = folds(model, inputs, wiring(model, inputs), linears, targets)
    folded: dict[str, list[str]] = {}
    for fold in exact:
        chosen = [name for name in fold.readers if name in amax]
        if chosen:
            fold_(model, fold, _scale(fold, amax[chosen[0]], [linears[name] for name in chosen], alpha), stored)
            folded[fold.producer] = fold.readers
    inside = {name for names in folded.values() for name in names}
    unsmoothed = [name for name in targets if name not in inside]
    if unsmoothed:
        log.note(
            f"SmoothQuant: {len(unsmoothed)} of {len(targets)} linears stay unsmoothed, for example {unsmoothed[0]}: "
            "nothing before them can take their scales"
        )
    return Smoothing(folded, unsmoothed)


def _scale(fold: Fold, amax_I: Tensor, readers: Sequence[nn.Linear], alpha: float) -> Tensor:
    """Returns `s_I`; channels with the same source share their maxima, and so the scale."""
    W_amax_I = torch.stack([linear.weight.detach().abs().amax(0) for linear in readers]).amax(0)
    amax_I, W_amax_I = (fold.producer_scale(maxima_I)[fold.channels_I] for maxima_I in (amax_I, W_amax_I))
    return smoothing_scale(amax_I, W_amax_I, alpha)


@torch.inference_mode()
def _maxima(
    model: Any, family: Family, linears: Mapping[str, nn.Linear], batches: Sequence[Batch], log: Log
) -> dict[str, Tensor]:
    """Returns `amax_I` of each linear's input over real tokens. Linears that never run are left out."""
    found: dict[str, Tensor] = {}
    batch: Batch = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x_TI, use_T = args[0].reshape(-1, args[0].shape[-1]), family.input_token_mask(batch, name).flatten()
            # an expert sees some of the tokens, and padding among them cannot be identified
            amax_I = (x_TI[use_T] if len(x_TI) == len(use_T) else x_TI).abs().amax(0).float()
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


def _probe(batch: Batch) -> Batch:
    """Returns one sample with its texts shortened."""
    return {name: tensor[:1, :PROBE_TOKENS] if tensor.dim() == 2 else tensor[:1] for name, tensor in batch.items()}
