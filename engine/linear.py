"""The linear layer of the engine, and layers with the same input computed as one."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine import kernels
from engine.architectures import shared_inputs
from engine.errors import EngineError
from engine.kernels import Matrix
from engine.weights import PackedWeight


class EngineLinear(nn.Module):
    """`y = W x + bias` by the engine's kernels, without gradients. Replaces an nn.Linear.

    Weights are packed for the kernels at the first call.
    """

    bias: Tensor | None
    """fp32, O."""
    input_scale: Tensor | None
    """fp32, I: inputs are divided by it first."""
    weight: None = None
    """An empty tensor, since only the packed weight exists. T5 reads it to convert its input to the dtype of a tensor
    here."""

    def __init__(self, packed: PackedWeight, bias: Tensor | None = None, input_scale: Tensor | None = None) -> None:
        super().__init__()
        self.packed = packed
        self.out_features, self.in_features = packed.shape
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        self.register_buffer("input_scale", None if input_scale is None else input_scale.detach().float())
        self.shared: SharedInput | None = None
        self._matrix: Matrix | None = None

    def matrix(self) -> Matrix:
        """Returns the matrix of the kernels. Raises EngineError without kernels."""
        if self._matrix is None:
            self._matrix = Matrix(self.packed, self.bias)
        return self._matrix

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            raise EngineError("engine linears have no gradients; run the model under torch.no_grad()")
        y_TO = self.shared.forward(self, x) if self.shared else self._multiply(self._rows(x))
        return y_TO.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _rows(self, x: Tensor) -> Tensor:
        x_TI = x.reshape(-1, self.in_features).float()
        return x_TI if self.input_scale is None else x_TI / self.input_scale

    def _multiply(self, x_TI: Tensor) -> Tensor:
        packed = self.packed
        if packed.bitmask is None and packed.dtype == "fp32" and len(x_TI) > kernels.MAX_GEMV_TOKENS:
            # nothing to skip and nothing to expand: the library's product is best
            return functional.linear(x_TI, packed.values.view(packed.shape), self.bias)
        return self.matrix().linear(x_TI, torch.get_num_threads())

    def extra_repr(self) -> str:
        packed = self.packed
        form = "dense" if packed.bitmask is None else f"sparsity={packed.sparsity:.3f}"
        return f"in_features={self.in_features}, out_features={self.out_features}, {packed.dtype}, {form}"


class SharedInput:
    """Linears that read the same tensor: one product of their stacked weights, of which each takes its rows.

    The first one called computes for all. Inputs are compared as tensors, not by their values.
    """

    def __init__(self, members: list[EngineLinear]) -> None:
        self._members = members
        self._whole = EngineLinear(
            PackedWeight.stack([member.packed for member in members]),
            torch.cat([_bias(member) for member in members]) if any(m.bias is not None for m in members) else None,
            members[0].input_scale,
        )
        self._input: Tensor | None = None
        self._version: int | None = None
        self._outputs: dict[EngineLinear, Tensor] = {}

    def matrix(self) -> Matrix:
        return self._whole.matrix()

    def forward(self, member: EngineLinear, x: Tensor) -> Tensor:
        if self._input is not x or self._version != _version(x) or member not in self._outputs:
            y_TO = self._whole._multiply(self._whole._rows(x))
            parts = torch.split(y_TO, [each.out_features for each in self._members], dim=1)
            self._outputs = {each: part.contiguous() for each, part in zip(self._members, parts, strict=True)}
            self._input, self._version = x, _version(x)
        mine = self._outputs.pop(member)
        if not self._outputs:
            self._input = None  # releases the activation
        return mine


def fuse(model: nn.Module) -> None:
    """Computes sibling linears that share their input (q, k and v; gate and up) as one.

    Siblings of different forms (one dense, one not), dtypes or input scales stay apart.
    """
    siblings: dict[str, dict[str, EngineLinear]] = defaultdict(dict)
    for name, module in model.named_modules():
        if isinstance(module, EngineLinear):
            parent, _, own = name.rpartition(".")
            siblings[parent][own] = module
    for parent, linears in siblings.items():
        for names in shared_inputs(parent):
            members = [linears[name] for name in names if name in linears]
            if len(members) == len(names) > 1 and _alike(members):
                shared = SharedInput(members)
                for member in members:
                    member.shared = shared


def _alike(members: list[EngineLinear]) -> bool:
    first = members[0]
    return all(
        member.packed.dtype == first.packed.dtype
        and member.in_features == first.in_features
        and (member.packed.bitmask is None) == (first.packed.bitmask is None)
        and same_scale(member.input_scale, first.input_scale)
        for member in members
    )


def same_scale(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(a, b)


def _bias(linear: EngineLinear) -> Tensor:
    return torch.zeros(linear.out_features) if linear.bias is None else linear.bias


def _version(x: Tensor) -> int | None:
    """Returns a counter that changes when the tensor is written to; inference tensors have none."""
    return None if x.is_inference() else x._version
