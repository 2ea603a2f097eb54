"""Stage `quantize`: makes quantized checkpoints. Torch-free description."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ModelWrapValidatorHandler, field_validator, model_validator

from stages.contracts import Checkpoint
from stages.options import Options, regular_expressions
from stages.quantize.cost import QuantizeCost
from stages.quantize.early import check_early
from stages.quantize.schemes import SCHEMES
from stages.stage import MetricSpec, Stage


class Quantize(Options):
    """Quantization after fine-tuning."""

    scheme: Literal["none"] | Annotated[str, SCHEMES] = Field(union_mode="left_to_right")
    """none: no quantization. w8a8: int8 weights with a scale for each output channel, int8 activations with a scale for
    each token. A file of `stages/quantize/schemes/`, or a scheme that an installed package adds."""
    smooth: float = Field(ge=0, le=1)
    """SmoothQuant's migration strength (arXiv 2211.10438), where a scale folds exactly; 0 is off."""
    skip: list[str]
    """Regular expressions of linears to leave in floating point (full match on the dotted name)."""
    skip_sensitive: int = Field(ge=0)
    """Leave out the linears whose quantization alone raises the calibration loss most: this many, found by
    measurement."""
    dense: bool
    """Also quantize the dense model, to separate the cost of int8 from that of sparsity."""

    @model_validator(mode="wrap")
    @classmethod
    def _of_the_chosen_scheme(cls, value: Any, handler: ModelWrapValidatorHandler[Quantize]) -> Quantize:
        if isinstance(value, dict) and value.get("scheme") == "none":
            return handler(value)
        return SCHEMES.validated(Quantize, cls, value, handler, "scheme")

    @property
    def reads_inputs(self) -> bool:
        """Returns whether the scheme needs calibration samples."""
        return self.scheme != "none" and SCHEMES.get(self.scheme).reads_inputs(self)

    @field_validator("skip")
    @classmethod
    def _readable(cls, value: list[str]) -> list[str]:
        return regular_expressions(value)


STAGE = Stage(
    "quantize",
    "2",
    Quantize,
    Checkpoint,
    check_early=check_early,
    cost=QuantizeCost(),
    metrics=(
        MetricSpec("weight_bytes", "bytes", False, headline=True),
        MetricSpec("sparsity", "fraction"),
        MetricSpec("weight_error", "", False),
        MetricSpec("quantized_linears"),
    ),
    model="quantized",
    needs_baseline=True,
)
