"""The sparse engine: the same kernels on dense and sparse weights, so the dense rows are quantization's share."""

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


class EngineEncoderDecoderRunner(EngineRunner, BeamSearch):
    def __init__(self, model: Any, family: encoder_decoder.EncoderDecoder, context: int) -> None:
        super().__init__(decoder.of(model, context), note="searches with beams through transformers")
        self.model, self.family = model, family


class _Engine:
    name: str
    dtype: DType
    head: DType = "fp32"
    quantized = False

    def prepare(self, checkpoint: Checkpoint, threads: int) -> Runner | Unavailable:
        if reason := kernels.unavailable():
            return Unavailable(reason)
        model = engine_models.load(checkpoint, self.dtype, "benchmark.backends", self.head)
        if reason := decoder.unsupported(model):
            return torch_runner(model, checkpoint, note=f"decodes through transformers: {reason}")
        family = families.of(checkpoint.path)
        context = min(family.context(model), MAX_CONTEXT)
        if isinstance(family, encoder_decoder.EncoderDecoder):
            return EngineEncoderDecoderRunner(model, family, context)
        return EngineRunner(decoder.of(model, context))


class EngineFp32(_Engine):
    name = "engine_fp32"
    dtype = "fp32"


class EngineBf16(_Engine):
    name = "engine_bf16"
    dtype = "bf16"


class EngineInt8(_Engine):
    """The int8 weights of the quantize stage; the head stays fp32."""

    name = "engine_int8"
    dtype = "int8"
    quantized = True


class EngineInt8Head(_Engine):
    """The same with the head in int8 too, as llama.cpp's and ONNX Runtime's int8 have it."""

    name = "engine_int8_head"
    dtype = "int8"
    head: DType = "int8"
    quantized = True
