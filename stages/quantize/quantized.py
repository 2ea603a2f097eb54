"""W8A8: int8 weights symmetric per output channel, int8 activations symmetric per token and dynamic.

Symmetric grids contain 0, so pruned weights stay exactly zero (ALGORITHMS section 5). The files of a quantized
checkpoint: `engine.quantized_folders`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from engine import quantized_folders
from engine.errors import EngineError
from engine.weights import Quantized
from stages import masks
from stages.contracts import Checkpoint, UserError
from stages.families import Family

LEVELS = 127
"""Steps of the grid of weights on either side of zero."""
ACTIVATION_STEPS = 127.5
"""A token's largest magnitude over its scale. compressed-tensors, whose logits ours should equal, divides the range of
both signs into 255 steps: -128 stays, 128 becomes 127."""
EXACT_INPUTS = 1024
"""Inputs whose int8 products sum exactly in fp32, in any order: 1024 · 128² = 2^24."""


def quantize_weight(W_OI: Tensor, scale_dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Returns `(q_OI int8, scale_O fp32)` with `|W - q · scale| <= scale / 2`; a row of zeros gets scale 1.

    Scales are numbers of `scale_dtype`, in which they are stored, so that readers multiply by the same numbers.
    """
    W_OI = W_OI.float()
    scale_O = _divisor(W_OI.abs().amax(dim=1).div_(LEVELS).to(scale_dtype).float())
    # a scale that was rounded down sends the largest to 127.25 at most in bf16, further where fp16 has few digits left
    return (W_OI / scale_O[:, None]).round_().clamp_(-LEVELS, LEVELS).to(torch.int8), scale_O


def quantize_activation(x_TI: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `(q_TI int8, scale_T fp32)`, each token by its own largest magnitude; a token of zeros gets scale 1."""
    x_TI = x_TI.float()
    scale_T = _divisor(x_TI.abs().amax(dim=1).div_(ACTIVATION_STEPS))
    return (x_TI / scale_T[:, None]).round_().clamp_(-128, 127).to(torch.int8), scale_T


def integer_matmul(q_TI: Tensor, q_OI: Tensor) -> Tensor:
    """Returns `acc_TO` int32: the exact product `q_TI q_OIᵀ` of int8 matrices, for I below 2^17."""
    if _int_mm_is_exact():
        return torch._int_mm(q_TI, q_OI.t())
    parts = zip(torch.split(q_TI, EXACT_INPUTS, 1), torch.split(q_OI, EXACT_INPUTS, 1), strict=True)
    return torch.stack([(a.float() @ b.float().t()).to(torch.int32) for a, b in parts]).sum(0, dtype=torch.int32)


class Int8Linear(nn.Module):
    """A linear layer in W8A8: `y = (q_x q_Wᵀ) · scale_x · scale_W + bias`, integer sums exact, output in x's dtype."""

    weight: nn.Parameter
    """int8, O x I."""
    weight_scale: Tensor
    """fp32, O."""
    bias: Tensor | None

    def __init__(self, q_OI: Tensor, scale_O: Tensor, bias_O: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = q_OI.shape
        self.weight = nn.Parameter(q_OI, requires_grad=False)
        self.register_buffer("weight_scale", scale_O)
        self.register_buffer("bias", bias_O)

    @classmethod
    def of(cls, linear: nn.Linear, scale_dtype: torch.dtype = torch.float32) -> Int8Linear:
        """Quantizes a linear; scales are numbers of `scale_dtype`."""
        q_OI, scale_O = quantize_weight(linear.weight.detach(), scale_dtype)
        return cls(q_OI, scale_O, None if linear.bias is None else linear.bias.detach())

    def dequantized(self) -> Tensor:
        """Returns `W_OI` in fp32."""
        return self.weight.float() * self.weight_scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        q_TI, scale_T = quantize_activation(x.reshape(-1, self.in_features))
        y_TO = integer_matmul(q_TI, self.weight).float().mul_(scale_T[:, None]).mul_(self.weight_scale)
        if self.bias is not None:
            y_TO += self.bias
        return y_TO.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def linears(model: nn.Module) -> dict[str, Int8Linear]:
    """Returns the quantized linears of a model, by dotted name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Int8Linear)}


def load(checkpoint: Checkpoint, family: Family, dtype: torch.dtype | None) -> Any:
    """Returns the model with its `Int8Linear`s, in eval mode, masks checked. `dtype` is that of everything in floating
    point except the scales; None keeps the stored one.

    Raises UserError when the files do not fit each other.
    """
    model = family.build(checkpoint.path)
    try:
        quantized_folders.load(checkpoint.path, model, _int8, dtype)
    except EngineError as error:
        raise UserError(str(error), "quantize") from None
    model.requires_grad_(False)
    masks.check(model, masks.of(checkpoint))
    return model.eval()


def _int8(linear: nn.Linear, weight: Quantized) -> Int8Linear:
    return Int8Linear(weight.q_OI, weight.scale_O, linear.bias)


def _divisor(scale_R: Tensor) -> Tensor:
    """Returns the scale to divide by. Below the normal range a scale is too coarse: then 1, and such a row rounds to
    zeros."""
    return scale_R.masked_fill(scale_R < torch.finfo(torch.float32).tiny, 1.0)


@cache
def _int_mm_is_exact() -> bool:
    """Tests whether the product is exact: CPUs without VNNI sum pairs of products in saturating 16 bits."""
    q_TI = torch.full((4, 256), LEVELS, dtype=torch.int8)
    q_OI = torch.full((16, 256), LEVELS, dtype=torch.int8)
    q_TI[1::2] = q_OI[1::2] = -LEVELS
    expected_TO = (q_TI.double() @ q_OI.double().t()).to(torch.int32)
    return torch.equal(torch._int_mm(q_TI, q_OI.t()), expected_TO)
