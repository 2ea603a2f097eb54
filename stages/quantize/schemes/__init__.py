"""Quantization schemes: the representation of weights and activations. A file each, and a file in conf/quantize/.

A member defines `SCHEME`. Its file is read when a run is planned, which must not import torch: it does so where it
computes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from stages.kinds import Kinds

if TYPE_CHECKING:
    import torch
    from torch import nn

    from stages.contracts import Checkpoint, Log
    from stages.families import Family
    from stages.quantize.spec import Quantize


@runtime_checkable
class Scheme(Protocol):
    options: type[Quantize]
    """The section `quantize` of the configuration, with the options of this scheme."""
    precision: str
    """Name of its precision in evaluations: `int8`."""
    engine: bool
    """Whether the sparse engine supports it."""

    def reads_inputs(self, options: Any) -> bool:
        """Returns whether it needs calibration samples. `options` is of its own `options`."""

    def claims(self, config: Mapping[str, Any]) -> bool:
        """Returns whether a checkpoint is of this scheme, by the `quantization_config` of its config.json."""

    def layer(self, linear: nn.Linear, scale_dtype: torch.dtype) -> nn.Module:
        """Returns the module that replaces a linear: its `dequantized()` is the `W_OI` that it represents, and its
        `weight` is 0 where the linear's is. Scales are numbers of `scale_dtype`, in which they are stored."""

    def describe(
        self, model: Any, family: Family, source: Checkpoint, targets: Collection[str], dimensions: Mapping[str, int],
        log: Log,
    ) -> dict[str, Any]:  # fmt: skip
        """Returns the `quantization_config` of a model whose linears `targets` are to be quantized, `quant_method`
        included. `dimensions` are those of the linears' inputs in a forward pass."""

    def load(self, checkpoint: Checkpoint, family: Family, dtype: torch.dtype | None) -> Any:
        """Returns the model in eval mode, masks checked; `dtype` is that of everything in floating point except scales.
        Raises UserError for files that do not fit each other."""


SCHEMES: Kinds[Scheme] = Kinds("quantization scheme", __name__, "SCHEME", "quantize.scheme", Scheme)


def of(checkpoint: Checkpoint) -> Scheme | None:
    """Returns the scheme of a checkpoint; None for one in floating point. One that no scheme claims goes to w8a8, whose
    reader reports what is wrong with it."""
    config = checkpoint.quantization
    if not config:
        return None
    claimed = (scheme for scheme in map(SCHEMES.get, SCHEMES.names()) if scheme.claims(config))
    return next(claimed, SCHEMES.get("w8a8"))
