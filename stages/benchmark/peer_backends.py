"""Backends that other runtimes are (engine.peers): a checkpoint's fp32 weights go to them, and they quantize."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine.bench.decoding import PeerRunner, Runner
from engine.peers import models
from engine.peers.contracts import Unavailable
from engine.peers.decoder import Decoder
from engine.peers.environments import python_of
from stages import checkpoints, families
from stages.contracts import Checkpoint
from stages.families.encoder_decoder import EncoderDecoder

if TYPE_CHECKING:
    from engine.peers.onnx_graph import Style

CALIBRATION_TOKENS = 128


class _Peer:
    name: str
    runtime: str
    """Of `engine.peers.environments`."""
    style: Any
    """What the runtime calls the precision."""
    quantized = False

    def prepare(self, checkpoint: Checkpoint, threads: int) -> Runner | Unavailable:
        family = families.of(checkpoint.path)
        if isinstance(family, EncoderDecoder):
            return Unavailable(f"{self.runtime} is given decoder-only models here, no encoder-decoder ({family.name})")
        python = python_of(self.runtime)
        if isinstance(python, Unavailable):
            return python
        model = checkpoints.load(checkpoint, torch.float32)
        started = self.start(model, Decoder.of(model.config.to_dict()), checkpoint, threads)
        return started if isinstance(started, Unavailable) else PeerRunner(started)

    def start(
        self, model: Any, decoder: Decoder, checkpoint: Checkpoint, threads: int
    ) -> models.PeerModel | Unavailable:
        raise NotImplementedError


class OnnxRuntimeFp32(_Peer):
    name = "onnxruntime_fp32"
    runtime = "onnxruntime"
    style: Style = "fp32"

    def start(
        self, model: Any, decoder: Decoder, checkpoint: Checkpoint, threads: int
    ) -> models.PeerModel | Unavailable:
        return models.onnxruntime(decoder, _arrays(model), self.style, threads)


class OnnxRuntimeInt8(OnnxRuntimeFp32):
    """Dynamic quantization: int8 weights per output channel, the head's too; uint8 activations per tensor."""

    name = "onnxruntime_int8"
    style = "int8_dynamic"


class DeepSparseFp32(_Peer):
    """DeepSparse 1.8, the paper's runtime, discontinued. Neural Magic DeepSparse Community License: for evaluation in
    development and testing environments only, not for production."""

    name = "deepsparse_fp32"
    runtime = "deepsparse"
    style: Style = "fp32"

    def start(
        self, model: Any, decoder: Decoder, checkpoint: Checkpoint, threads: int
    ) -> models.PeerModel | Unavailable:
        largest = largest_inputs(model) if self.style == "int8_static" else {}
        return models.deepsparse(decoder, lambda: _weights(checkpoint), self.style, threads, largest)


class DeepSparseInt8(DeepSparseFp32):
    """As `DeepSparseFp32`, licence included, in int8: weights per output channel, the head's too; activations by static
    scales, one a tensor, the only ones that it runs fast. They come from random tokens: its speed counts here."""

    name = "deepsparse_int8"
    style = "int8_static"


class LlamaCppQ8(_Peer):
    name = "llamacpp_q8_0"
    runtime = "llamacpp"
    style = "Q8_0"

    def start(
        self, model: Any, decoder: Decoder, checkpoint: Checkpoint, threads: int
    ) -> models.PeerModel | Unavailable:
        return models.llamacpp(decoder, _arrays(model), self.style, threads)


class LlamaCppQ4K(LlamaCppQ8):
    """Q4_K_M: 4-bit blocks, some matrices in more bits; the row's note counts the types."""

    name = "llamacpp_q4_k"
    style = "Q4_K_M"


@torch.inference_mode()
def largest_inputs(model: Any) -> dict[str, float]:
    """The largest input magnitude of each linear, by its name, over random tokens of a fixed seed."""
    found: dict[str, float] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: found.update({name: float(inputs[0].abs().max())})

    hooks = [
        module.register_forward_pre_hook(watch(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    draw = torch.Generator().manual_seed(0)
    model(input_ids=torch.randint(model.config.vocab_size, (1, CALIBRATION_TOKENS), generator=draw), use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def _weights(checkpoint: Checkpoint) -> models.Weights:
    return _arrays(checkpoints.load(checkpoint, torch.float32))


def _arrays(model: nn.Module) -> models.Weights:
    """Views of its weights, not copies."""
    return {name: weight.numpy() for name, weight in model.state_dict().items()}
