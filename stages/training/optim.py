"""The optimizer of dense and sparse training: AdamW or Adafactor, its learning rates, and the rules of masks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.schema import Training


def optimizer(model: nn.Module, config: Training) -> torch.optim.Optimizer:
    """Weight decay on matrices only: norms and biases are left alone."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    others = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=config.lr)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def learning_rate(step: int, steps: int, config: Training) -> float:
    """Of the step that follows `step` finished ones, of `steps` in all.

    Rises linearly over `warmup_steps` (lr·1/(w+1), 2/(w+1), ...), stands at `lr` in step w, and falls from there to 0,
    which the step after the last one would have.
    """
    warmup = config.warmup_steps
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    t = (step - warmup) / max(steps - warmup, 1)
    match config.decay:
        case "linear":
            return config.lr * (1 - t)
        case "cosine":
            return config.lr * 0.5 * (1 + math.cos(math.pi * t))
        case "constant":
            return config.lr


class MaskedOptimizer:
    """Steps that keep pruned weights at zero."""

    def __init__(self, model: nn.Module, config: Training, pruned: Mapping[str, Tensor]) -> None:
        self.inner = optimizer(model, config)
        self.clip_norm = config.clip_norm
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.masked: list[tuple[nn.Parameter, Tensor]] = []
        self.set_masks(pruned)

    @torch.no_grad()
    def set_masks(self, pruned: Mapping[str, Tensor]) -> None:
        """From now on these weights are pruned: zeroed, and so are their moments."""
        weights = {name: self.parameters[f"{name}.weight"] for name in pruned}
        self.masked = [(weights[name], keep_OI.to(weights[name].device)) for name, keep_OI in pruned.items()]
        for weight_OI, keep_OI in self.masked:
            weight_OI.mul_(keep_OI)
            state = self.inner.state.get(weight_OI, {})
            for moment in ("exp_avg", "exp_avg_sq"):
                if moment in state:
                    state[moment].mul_(keep_OI)

    @torch.no_grad()
    def step(self, lr: float) -> Tensor:
        """One step from the accumulated gradients, which are then forgotten. Returns their norm, before clipping.

        A step whose norm is not finite is not taken.
        """
        for weight_OI, keep_OI in self.masked:
            if weight_OI.grad is not None:
                weight_OI.grad.mul_(keep_OI)
        moved = [p for p in self.parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in moved if p.grad is not None])
        if torch.isfinite(norm):
            if self.clip_norm:
                torch.nn.utils.clip_grads_with_norm_(moved, self.clip_norm, norm)
            for group in self.inner.param_groups:
                group["lr"] = lr
            self.inner.step()
            for weight_OI, keep_OI in self.masked:
                weight_OI.mul_(keep_OI)
        self.inner.zero_grad(set_to_none=True)
        return norm
