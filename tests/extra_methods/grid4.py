"""A quantization scheme: weights on a grid of 15 steps per output channel, kept as floating-point numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from stages.quantize.spec import Quantize

if TYPE_CHECKING:
    import torch
    from torch import nn

    from stages.contracts import Checkpoint, Log
    from stages.families import Family


class Grid4:
    options = Quantize
    precision = "grid4"
    engine = False

    def reads_inputs(self, options: Quantize) -> bool:
        return False

    def claims(self, config: Mapping[str, Any]) -> bool:
        return config.get("quant_method") == "grid4"

    def layer(self, linear: nn.Linear, scale_dtype: torch.dtype) -> nn.Module:
        from torch import nn

        class OnGrid(nn.Linear):
            def dequantized(self) -> torch.Tensor:
                return self.weight.detach()

        layer = OnGrid(linear.in_features, linear.out_features, linear.bias is not None)
        scale_O1 = (linear.weight.detach().abs().amax(1, keepdim=True) / 7).clamp_min(1e-30)
        layer.weight.data = (linear.weight.detach() / scale_O1).round() * scale_O1
        if linear.bias is not None:
            layer.bias.data = linear.bias.detach()
        return layer

    def describe(
        self, model: Any, family: Family, source: Checkpoint, targets: Collection[str], dimensions: Mapping[str, int],
        log: Log,
    ) -> dict[str, Any]:  # fmt: skip
        return {"quant_method": "grid4"}

    def load(self, checkpoint: Checkpoint, family: Family, dtype: torch.dtype | None) -> Any:
        from safetensors.torch import load_file

        model = family.build(checkpoint.path)
        model.load_state_dict(load_file(checkpoint.path / "model.safetensors"), strict=False)
        model.tie_weights()
        return (model if dtype is None else model.to(dtype)).eval()


SCHEME = Grid4()
