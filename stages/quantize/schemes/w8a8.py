"""int8 weights per output channel, int8 activations per token."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from stages.quantize.spec import Quantize

if TYPE_CHECKING:
    import torch
    from torch import nn

    from stages.contracts import Checkpoint, Log
    from stages.families import Family


class W8A8:
    options = Quantize
    precision = "int8"
    engine = True

    def reads_inputs(self, options: Quantize) -> bool:
        return bool(options.smooth or options.skip_sensitive)

    def claims(self, config: Mapping[str, Any]) -> bool:
        from engine.quantized_folders import WEIGHTS

        return config.get("quant_method") in WEIGHTS

    def layer(self, linear: nn.Linear, scale_dtype: torch.dtype) -> nn.Module:
        from stages.quantize.quantized import Int8Linear

        return Int8Linear.of(linear, scale_dtype)

    def describe(
        self, model: Any, family: Family, source: Checkpoint, targets: Collection[str], dimensions: Mapping[str, int],
        log: Log,
    ) -> dict[str, Any]:  # fmt: skip
        from stages.quantize import writing

        stock = writing.stock_model(family, source.path)
        misread = writing.misread(model, stock, targets, dimensions)
        if misread:
            log.note(f"only squarehead reads this int8 checkpoint, transformers and vLLM refuse it: {misread}")
        log.facts(misread=misread or "")
        return writing.quantization_config(stock, targets, own=misread is not None)

    def load(self, checkpoint: Checkpoint, family: Family, dtype: torch.dtype | None) -> Any:
        from stages.quantize import quantized

        return quantized.load(checkpoint, family, dtype)


SCHEME = W8A8()
