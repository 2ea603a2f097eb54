"""W8A8: int8 weights symmetric per output channel, int8 activations symmetric per token and dynamic.

A quantized checkpoint is a Hugging Face folder whose model.safetensors holds, for each quantized linear, `name.weight`
(int8, O x I), `name.weight_scale` (fp32, O) and, where SmoothQuant's scale could not be folded into the norm before it,
`name.input_scale` (fp32, I); and quantization.json, which names those linears. Symmetric grids contain 0, so pruned
weights stay exactly zero (ALGORITHMS section 5).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.contracts import Checkpoint, UserError
from stages import masks
from stages.families import Family
from stages.masks import Masks

FORMAT = "squarehead-w8a8-1"
LEVELS = 127
EXACT_INPUTS = 1024
"""Inputs whose int8 products sum exactly in fp32, in any order: 1024 · 128² = 2^24."""


def quantize_weight(W_OI: Tensor) -> tuple[Tensor, Tensor]:
    """`(q_OI int8, scale_O fp32)` with `|W - q · scale| <= scale / 2`; a row of zeros gets scale 1."""
    return _symmetric(W_OI.float())


def quantize_activation(x_TI: Tensor) -> tuple[Tensor, Tensor]:
    """`(q_TI int8, scale_T fp32)`, each token by its own largest magnitude; a token of zeros gets scale 1."""
    return _symmetric(x_TI.float())


def integer_matmul(q_TI: Tensor, q_OI: Tensor) -> Tensor:
    """`acc_TO` int32: the exact product `q_TI q_OIᵀ` of int8 matrices, for I below 2^17."""
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
    input_scale: Tensor | None
    """fp32, I: SmoothQuant's s; inputs are divided by it (the weights were multiplied)."""

    def __init__(
        self,
        q_OI: Tensor,
        scale_O: Tensor,
        bias_O: Tensor | None = None,
        input_scale_I: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = q_OI.shape
        self.weight = nn.Parameter(q_OI, requires_grad=False)
        self.register_buffer("weight_scale", scale_O)
        self.register_buffer("bias", bias_O)
        self.register_buffer("input_scale", input_scale_I)

    @classmethod
    def of(cls, linear: nn.Linear, input_scale_I: Tensor | None = None) -> Int8Linear:
        """Quantizes a linear; with `input_scale_I` its weights are multiplied by it first."""
        W_OI = linear.weight.detach().float()
        q_OI, scale_O = quantize_weight(W_OI if input_scale_I is None else W_OI * input_scale_I)
        return cls(q_OI, scale_O, None if linear.bias is None else linear.bias.detach(), input_scale_I)

    def dequantized(self) -> Tensor:
        """`W_OI` in fp32 as the layer applies it to its input, SmoothQuant undone."""
        W_OI = self.weight.float() * self.weight_scale[:, None]
        return W_OI if self.input_scale is None else W_OI / self.input_scale

    def forward(self, x: Tensor) -> Tensor:
        x_TI = x.reshape(-1, self.in_features)
        if self.input_scale is not None:
            x_TI = x_TI.float() / self.input_scale
        q_TI, scale_T = quantize_activation(x_TI)
        y_TO = integer_matmul(q_TI, self.weight).float().mul_(scale_T[:, None]).mul_(self.weight_scale)
        if self.bias is not None:
            y_TO += self.bias
        return y_TO.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        smooth = ", smooth" if self.input_scale is not None else ""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}{smooth}"


def linears(model: nn.Module) -> dict[str, Int8Linear]:
    """The quantized linears of a model, by dotted name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Int8Linear)}


def save(model: Any, pruned: Masks, record: Mapping[str, Any], out: Path) -> None:
    """Writes config, int8 weights, masks and quantization.json (`record` and the linears' names) into `out`.

    What stays in floating point is stored in `model.config.dtype`. The tokenizer is the caller's. Asserts that pruned
    weights are zero.
    """
    masks.check(model, pruned)
    model.config.save_pretrained(out)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(out)
    second = _second_names(model)
    dtype = model.config.dtype or torch.float32
    tensors = {
        name: _cast(name, tensor, dtype).contiguous()
        for name, tensor in model.state_dict().items()
        if name not in second
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    if pruned:
        masks.save(pruned, out / "masks.safetensors")
    whole = {"format": FORMAT, **record, "linears": sorted(linears(model))}
    (out / "quantization.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")


def load(checkpoint: Checkpoint, family: Family, dtype: torch.dtype | None) -> Any:
    """The model with its `Int8Linear`s, in eval mode, masks checked; `dtype` is that of everything in floating point
    except the scales, None keeps the stored one.

    Raises UserError when the files do not fit each other.
    """
    assert checkpoint.quantization is not None
    record = json.loads(checkpoint.quantization.read_text(encoding="utf-8"))
    if record.get("format") != FORMAT:
        raise _refused(checkpoint, f"format {record.get('format')!r}, expected {FORMAT!r}")
    try:
        tensors = load_file(checkpoint.path / "model.safetensors")
    except (SafetensorError, OSError) as error:
        raise _refused(checkpoint, str(error)) from None
    model = family.build(checkpoint.path)
    quantized = set(record["linears"])
    for name in quantized:
        q_OI, scale_O = tensors.get(f"{name}.weight"), tensors.get(f"{name}.weight_scale")
        if q_OI is None or scale_O is None or q_OI.dtype != torch.int8 or scale_O.shape != q_OI.shape[:1]:
            raise _refused(checkpoint, f"{name} has no int8 weight with a scale for each output")
        linear = model.get_submodule(name)
        if (linear.out_features, linear.in_features) != q_OI.shape:
            raise _refused(checkpoint, f"{name} is {tuple(q_OI.shape)}, the architecture has another shape")
        model.set_submodule(name, Int8Linear(q_OI, scale_O, linear.bias, tensors.get(f"{name}.input_scale")))
    second = _second_names(model)
    # a head of its own, as that of T5 v1.1, is tied in the configuration alone
    expected = set(model.state_dict()) - (second.keys() - tensors.keys())
    if expected != set(tensors):
        odd = sorted(expected ^ set(tensors))
        raise _refused(checkpoint, f"{len(odd)} tensors are missing or too many, first {odd[0]}")
    if dtype is not None:
        tensors = {name: _cast(name, tensor, dtype) for name, tensor in tensors.items()}
    # tied weights stand in the file once
    tied = {name: nn.Parameter(tensors[name], requires_grad=False) for name in second.values()}
    tied |= {name: tied[first] for name, first in second.items() if name not in tensors}
    model.load_state_dict(tensors | tied, assign=True)
    model.requires_grad_(False)
    masks.check(model, masks.of(checkpoint))
    return model.eval()


def _symmetric(x_RC: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds each row to the grid of 255 levels that spans plus and minus its largest magnitude."""
    scale_R = x_RC.abs().amax(dim=1).div_(LEVELS)
    # below the normal range a scale is too coarse to divide by: such a row rounds to zeros
    scale_R.masked_fill_(scale_R < torch.finfo(torch.float32).tiny, 1.0)
    return (x_RC / scale_R[:, None]).round_().to(torch.int8), scale_R


@cache
def _int_mm_is_exact() -> bool:
    """CPUs without VNNI sum pairs of products in saturating 16 bits: the extremes show it."""
    q_TI = torch.full((4, 256), LEVELS, dtype=torch.int8)
    q_OI = torch.full((16, 256), LEVELS, dtype=torch.int8)
    q_TI[1::2] = q_OI[1::2] = -LEVELS
    expected_TO = (q_TI.double() @ q_OI.double().t()).to(torch.int32)
    return torch.equal(torch._int_mm(q_TI, q_OI.t()), expected_TO)


def _second_names(model: nn.Module) -> dict[str, str]:
    """Of tied parameters: each further name -> the first one."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    names = {name: first[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)}
    return {name: its_first for name, its_first in names.items() if name != its_first}


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    scale = name.endswith((".weight_scale", ".input_scale"))
    return tensor if scale or not tensor.is_floating_point() else tensor.to(dtype)


def _refused(checkpoint: Checkpoint, reason: str) -> UserError:
    return UserError(f"the quantized checkpoint {checkpoint.path.name} cannot be read: {reason}", "quantize")
