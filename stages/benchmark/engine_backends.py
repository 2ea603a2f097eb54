"""The sparse engine as a backend. Dense and sparse weights use the same kernels, so the dense rows show the effect of
quantization alone."""

from __future__ import annotations

from typing import Any

from engine import decoder, kernels
from engine.bench.decoding import EngineRunner, Runner
from engine.peers.contracts import Unavailable
from engine.step import MAX_CONTEXT
from engine.weights import DType
from stages import engine_models, families
from stages.benchmark.torch_backends import BeamSearch, torch_runner
from stages.contracts import Checkpoint
from stages.families import encoder_decoder
from stages.quantize import schemes


class EngineEncoderDecoderRunner(EngineRunner, BeamSearch):
    def __init__(self, model: Any, family: encoder_decoder.EncoderDecoder, context: int) -> None:
        super().__init__(decoder.of(model, context), note="searches with beams through transformers")
        self.model, self.family = model, family


def engine_runner(checkpoint: Checkpoint, dtype: DType, head: DType = "fp32") -> Runner | Unavailable:
    if reason := kernels.unavailable():
        return Unavailable(reason)
    scheme = schemes.of(checkpoint)
    if scheme and not scheme.engine:
        return Unavailable(f"the engine does not compute {scheme.precision} as this model is quantized")
    model = engine_models.load(checkpoint, dtype, "benchmark.backends", head)
    if reason := decoder.unsupported(model):
        return torch_runner(model, checkpoint, note=f"decodes through transformers: {reason}")
    family = families.of(checkpoint.path)
    context = min(family.context(model), MAX_CONTEXT)
    if isinstance(family, encoder_decoder.EncoderDecoder):
        return EngineEncoderDecoderRunner(model, family, context)
    return EngineRunner(decoder.of(model, context))
