"""Small steps of weights that are stored in 16 bits.

A fine-tuning step is below half the distance of two neighbouring bf16 numbers: rounded to the nearest, most weights
would never move. Either the optimizer works on fp32 copies, or steps are rounded up or down at random, so that the mean
of many steps is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Parameters = Mapping[str, nn.Parameter]

PIECE_ELEMENTS = 1 << 26
"""Weights of which stochastic rounding holds fp32 values at a time: 256 MB, and as much for their gradients."""
LOW_BITS = 16
"""Bits of an fp32 number that a bf16 number lacks."""


class Updates(Protocol):
    """The layer between a model's parameters and the optimizer that moves them. All names are the model's."""

    exact: dict[str, nn.Parameter]
    """The optimizer's fp32 parameters. A parameter in fp32 is itself."""

    def gradients(self) -> dict[str, nn.Parameter]:
        """Returns the parameters whose `grad` holds the step's gradient, if there is any."""

    def step(self, inner: torch.optim.Optimizer) -> None:
        """Takes one step of `inner` and updates the model's parameters."""

    def adopt(self, name: str) -> None:
        """Takes over a change that was made to the model's parameter itself (by a pruner)."""

    def zero(self, name: str, keep: Tensor) -> None:
        """Zeroes the weights that are not kept."""

    def state(self) -> dict[str, Tensor]:
        """Returns what a checkpoint must hold of each parameter."""

    def restore(self, name: str, value: Tensor) -> None:
        """Restores what `state` returned."""


class MasterWeights:
    """An fp32 copy of each parameter in 16 bits, which the optimizer moves; the parameter is that copy, rounded.

    Gradients are summed over micro-batches in fp32 as well.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.exact = {
            name: p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for name, p in parameters.items()
        }
        for name, parameter in self._copied():
            hooked: Any = parameter  # torch declares no types here
            hooked.register_post_accumulate_grad_hook(partial(_gather, self.exact[name]))

    def _copied(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.parameters.items() if self.exact[name] is not p)

    def gradients(self) -> dict[str, nn.Parameter]:
        for name, parameter in self._copied():
            _gather(self.exact[name], parameter)
        return self.exact

    def step(self, inner: torch.optim.Optimizer) -> None:
        inner.step()
        for name, parameter in self._copied():
            parameter.copy_(self.exact[name])

    def adopt(self, name: str) -> None:
        exact, parameter = self.exact[name], self.parameters[name]
        if exact is not parameter:
            # where nothing was changed, the copy has more digits
            exact.copy_(torch.where(exact.to(parameter.dtype) == parameter, exact, parameter.float()))

    def zero(self, name: str, keep: Tensor) -> None:
        self.exact[name].mul_(keep)
        if self.exact[name] is not self.parameters[name]:
            self.parameters[name].mul_(keep)

    def state(self) -> dict[str, Tensor]:
        return {name: exact.detach() for name, exact in self.exact.items()}

    def restore(self, name: str, value: Tensor) -> None:
        self.exact[name].copy_(value)
        self.parameters[name].copy_(value)


class StochasticRounding:
    """Keeps no copies: a step is computed in fp32, a few matrices at a time, and rounded up or down at random.

    Needs 6 bytes a weight less than `MasterWeights`. Gradients are summed over micro-batches in the dtype of the
    weights.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.exact = {
            name: p if p.dtype == torch.float32 else nn.Parameter(torch.empty(0, device=p.device))
            for name, p in parameters.items()
        }

    def gradients(self) -> dict[str, nn.Parameter]:
        return dict(self.parameters)

    def step(self, inner: torch.optim.Optimizer) -> None:
        given = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        for parameter in self.parameters.values():
            parameter.grad = None
        # the optimizer moves those that have a gradient
        for piece in self._pieces(given):
            for name in piece:
                exact, parameter = self.exact[name], self.parameters[name]
                if exact is not parameter:
                    exact.data = parameter.detach().float()
                exact.grad = given.pop(name).float()
            inner.step()
            for name in piece:
                exact, parameter = self.exact[name], self.parameters[name]
                exact.grad = None
                if exact is not parameter:
                    parameter.copy_(round_stochastically(exact))
                    exact.data = torch.empty(0, device=exact.device)

    def _pieces(self, names: Mapping[str, object]) -> list[list[str]]:
        pieces: list[list[str]] = []
        room = 0
        for name in names:
            size = self.parameters[name].numel()
            if not pieces or size > room:
                pieces.append([])
                room = PIECE_ELEMENTS
            pieces[-1].append(name)
            room -= size
        return pieces

    def adopt(self, name: str) -> None:
        """Does nothing: there is no copy."""

    def zero(self, name: str, keep: Tensor) -> None:
        self.parameters[name].mul_(keep)

    def state(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    def restore(self, name: str, value: Tensor) -> None:
        self.parameters[name].copy_(value)


KINDS: dict[str, type[MasterWeights] | type[StochasticRounding]] = {
    "fp32_master": MasterWeights,
    "stochastic_rounding": StochasticRounding,
}
"""Classes by the value of the option `bf16_updates`."""


def round_stochastically(values: Tensor) -> Tensor:
    """Rounds fp32 to one of the two neighbouring bf16 numbers, the nearer one more often, so that the mean is exact.

    Draws from torch's global generator. Numbers that bf16 can represent, 0 above all, stay unchanged.
    """
    bits = values.detach().contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << LOW_BITS, bits.shape, dtype=torch.int32, device=bits.device)
    return ((bits + noise) >> LOW_BITS << LOW_BITS).view(torch.float32).bfloat16()


@torch.no_grad()
def _gather(exact: nn.Parameter, parameter: Tensor) -> None:
    """Moves a gradient from the model's parameter to its fp32 copy."""
    if parameter.grad is None:
        return
    if exact.grad is None:
        exact.grad = parameter.grad.float()
    else:
        exact.grad.add_(parameter.grad)
    parameter.grad = None
