"""Converts layers that transformers stores in another form than `nn.Linear` to linears and back.

transformers keeps the experts of a mixture in two parameters of three dimensions; GPT-2 and similar models have
`Conv1D`, a linear with its weight transposed. Pruning, distillation, quantization and the engine all work on linears:
`unfuse_` creates them, under the name of the layer (`experts.3.down_proj`), and `fuse_` restores what transformers
saves and loads. Both only rearrange: the linears' weights are views of the parameters, and each expert computes the
tokens routed to it, as transformers' own eager code does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class RoutedLinear(nn.Linear):
    """A linear of an expert: it sees the tokens that are routed to it."""

    tokens_N: Tensor | None = None  # noqa: N815
    """Holds, during a call, the index of the model's token (row by row) for each row of its input."""


class UnfusedExperts(nn.ModuleList):
    """The experts of a layer, each a module with the linears `gate_up_proj` (or `up_proj`) and `down_proj`."""

    def __init__(self, fused: Any) -> None:
        super().__init__()
        # in a tuple, so that it is not registered: its parameters are in the linears
        self._fused: tuple[Any] = (fused,)
        self.names = ("gate_up_proj" if fused.has_gate else "up_proj", "down_proj")
        for number in range(fused.num_experts):
            expert = nn.Module()
            for name in self.names:
                setattr(expert, name, _linear_of(fused, name, number))
            self.append(expert)
        for name in self.names:
            setattr(fused, name, None)
            if fused.has_bias:
                setattr(fused, f"{name}_bias", None)
        self.train(fused.training)

    @property
    def fused(self) -> Any:
        """Returns transformers' module, without its weights."""
        return self._fused[0]

    def forward(self, h_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
        """Computes the output. `expert_TK`: the experts of each token; `weight_TK`: the weights of their outputs."""
        out_TD = torch.zeros_like(h_TD)
        num_tokens = len(h_TD)
        experts_N = expert_TK.t().flatten()
        order_N = experts_N.argsort(stable=True)
        weights_N = weight_TK.t().flatten()
        ends = experts_N.bincount(minlength=len(self)).cumsum(0).tolist()
        for expert, begin, end in zip(self, [0, *ends], ends[: len(self)], strict=False):
            if begin == end:
                continue
            chosen_N = order_N[begin:end]
            tokens_N = chosen_N % num_tokens
            y_ND = self._expert(expert, h_TD[tokens_N], tokens_N) * weights_N[chosen_N, None]
            out_TD.index_add_(0, tokens_N, y_ND.to(out_TD.dtype))
        return out_TD

    def _expert(self, expert: Any, x_ND: Tensor, tokens_N: Tensor) -> Tensor:
        first, second = (getattr(expert, name) for name in self.names)
        for linear in (first, second):
            linear.tokens_N = tokens_N
        inner_ND = first(x_ND)
        inner_ND = self.fused._apply_gate(inner_ND) if self.fused.has_gate else self.fused.act_fn(inner_ND)
        y_ND: Tensor = second(inner_ND)
        return y_ND

    def refused_(self) -> nn.Module:
        """Returns transformers' module, with the current weights; the linears become views of them."""
        fused = self.fused
        for name in self.names:
            linears = [getattr(expert, name) for expert in self]
            weights = [linear.weight.data.t() if fused.is_transposed else linear.weight.data for linear in linears]
            setattr(fused, name, nn.Parameter(torch.stack(weights), linears[0].weight.requires_grad))
            if fused.has_bias:
                biases = torch.stack([linear.bias.data for linear in linears])
                setattr(fused, f"{name}_bias", nn.Parameter(biases, linears[0].bias.requires_grad))
        fused.train(self.training)
        module: nn.Module = fused
        return module


def _linear_of(fused: Any, name: str, number: int) -> RoutedLinear:
    weight = getattr(fused, name)
    W_OI = weight.data[number].t() if fused.is_transposed else weight.data[number]
    bias = getattr(fused, f"{name}_bias") if fused.has_bias else None
    linear = RoutedLinear(W_OI.shape[1], W_OI.shape[0], bias=bias is not None, device="meta", dtype=W_OI.dtype)
    linear.weight = nn.Parameter(W_OI, weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.data[number], bias.requires_grad)
    return linear


class UnfusedConv1D(nn.Linear):
    """The linear that replaces a `Conv1D`."""


def unfuse_(model: nn.Module) -> None:
    """Replaces experts and `Conv1D`s by linears. What is unfused already, and experts of an unknown kind, stay as they
    are."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            W_OI = module.weight.data.t()
            linear = UnfusedConv1D(W_OI.shape[1], W_OI.shape[0], device="meta", dtype=W_OI.dtype)
            linear.weight = nn.Parameter(W_OI, module.weight.requires_grad)
            linear.bias = module.bias
            model.set_submodule(name, linear.train(module.training))
        elif _is_known(module):
            model.set_submodule(name, UnfusedExperts(module))


def fuse_(model: nn.Module) -> None:
    """Reverses `unfuse_`: restores the model as transformers builds, saves and loads it."""
    for name, module in list(model.named_modules()):
        if isinstance(module, UnfusedExperts):
            model.set_submodule(name, module.refused_())
        elif isinstance(module, UnfusedConv1D):
            conv = Conv1D(0, 0)
            conv.nf, conv.nx = module.out_features, module.in_features
            conv.weight = nn.Parameter(module.weight.data.t(), module.weight.requires_grad)
            conv.bias = module.bias
            model.set_submodule(name, conv.train(module.training))


@contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """Restores transformers' form of the model within the block, for saving."""
    fuse_(model)
    try:
        yield
    finally:
        unfuse_(model)


def is_unfused(model: nn.Module) -> bool:
    """Returns whether some of its linears are not linears in transformers' own form of the model."""
    return any(isinstance(module, UnfusedExperts | UnfusedConv1D) for module in model.modules())


def _is_known(module: Any) -> bool:
    """Returns whether experts follow transformers' interface of them, in two parameters for all."""
    flags = ("has_gate", "has_bias", "is_transposed", "num_experts")
    if not all(hasattr(module, flag) for flag in flags) or getattr(module, "has_post_expert_norm", False):
        return False
    first = getattr(module, "gate_up_proj" if module.has_gate else "up_proj", None)
    second = getattr(module, "down_proj", None)
    stored = {name for name, _ in module.named_parameters()}
    expected = {"gate_up_proj" if module.has_gate else "up_proj", "down_proj"}
    if module.has_bias:
        expected |= {f"{name}_bias" for name in expected}
    return (
        isinstance(first, nn.Parameter)
        and isinstance(second, nn.Parameter)
        and first.dim() == second.dim() == 3
        and stored == expected
    )
