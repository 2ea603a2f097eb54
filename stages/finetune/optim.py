"""The optimizer of dense and sparse training: AdamW or Adafactor, its learning rates, and its handling of masks."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence

import torch
from torch import Tensor, nn

from stages.finetune import weight_updates
from stages.finetune.spec import Training, decay_steps
from stages.finetune.weight_updates import Updates


def optimizer(
    parameters: Mapping[str, nn.Parameter], matrices: Container[str], config: Training
) -> torch.optim.Optimizer:
    """Returns the optimizer, with weight decay on matrices only: norms and biases have none."""
    groups = [
        {"params": [p for name, p in parameters.items() if name in matrices], "weight_decay": config.weight_decay},
        {"params": [p for name, p in parameters.items() if name not in matrices], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=config.lr)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def learning_rate(step: int, steps: int, config: Training) -> float:
    """Returns the learning rate of the step that follows `step` finished ones, of `steps` in all.

    It rises linearly over `warmup_steps` (lr·1/(w+1), 2/(w+1), ...), reaches `lr` in step w, and falls from there to
    `final_lr_fraction` of it, which the step after the last one would have.
    """
    warmup = config.warmup_steps
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    t = (step - warmup) / max(steps - warmup, 1)
    match config.decay:
        case "linear":
            share = 1 - t
        case "cosine":
            share = 0.5 * (1 + math.cos(math.pi * t))
        case "wsd":
            share = min(1.0, (steps - step) / max(decay_steps(steps, config), 1))
        case "constant":
            share = 1.0
    final = config.final_lr_fraction
    return config.lr * (final + (1 - final) * share) if final else config.lr * share


class MaskedOptimizer:
    """An optimizer that keeps pruned weights at zero, for weights in any precision
    (`stages.finetune.weight_updates`)."""

    def __init__(self, model: nn.Module, config: Training, pruned: Mapping[str, Tensor]) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.updates: Updates = weight_updates.KINDS[config.bf16_updates](self.parameters)
        matrices = {name for name, p in self.parameters.items() if p.dim() >= 2}
        self.inner = optimizer(self.updates.exact, matrices, config)
        self.clip_norm = config.clip_norm
        self.masked: dict[str, Tensor] = {}
        """By name of the parameter; True = kept."""
        self.set_masks(pruned)

    @torch.no_grad()
    def set_masks(self, pruned: Mapping[str, Tensor]) -> None:
        """Sets the masks from now on: zeroes the pruned weights, and their moments."""
        named = {f"{name}.weight": keep_OI for name, keep_OI in pruned.items()}
        self.masked = {name: keep_OI.to(self.parameters[name].device) for name, keep_OI in named.items()}
        for name, keep_OI in self.masked.items():
            self.updates.adopt(name)
            self.updates.zero(name, keep_OI)
            state = self.inner.state.get(self.updates.exact[name], {})
            for moment in ("exp_avg", "exp_avg_sq"):
                if moment in state:
                    state[moment].mul_(keep_OI)

    @torch.no_grad()
    def step(self, lr: float) -> Tensor:
        """Takes one step from the accumulated gradients and clears them. Returns their norm, before clipping.

        A parameter without a gradient (an expert that no token reached) stays. A step whose norm is not finite is not
        taken.
        """
        graded = {name: p for name, p in self.updates.gradients().items() if p.grad is not None}
        for name, keep_OI in self.masked.items():
            if name in graded:
                _gradient(graded[name]).mul_(keep_OI)
        norm = total_norm([_gradient(p) for p in graded.values()])
        if torch.isfinite(norm):
            if self.clip_norm:
                torch.nn.utils.clip_grads_with_norm_(graded.values(), self.clip_norm, norm)
            for group in self.inner.param_groups:
                group["lr"] = lr
            self.updates.step(self.inner)
            for name, keep_OI in self.masked.items():
                self.updates.zero(name, keep_OI)
        for parameter in (*self.parameters.values(), *self.updates.exact.values()):
            parameter.grad = None
        return norm


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Returns the norm of all of them together, in fp32 whatever they are stored in; 0 for no gradients."""
    if not gradients:
        return torch.zeros(())
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    return torch.stack(norms).square().sum().sqrt()


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
