"""Other runtimes (engine.peers) as backends: they get a checkpoint's fp32 weights and quantize them themselves."""

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


def onnxruntime(checkpoint: Checkpoint, threads: int, style: Style) -> Runner | Unavailable:
    return _runner(
        "onnxruntime", checkpoint, lambda model, decoder: models.onnxruntime(decoder, _arrays(model), style, threads)
    )


def deepsparse(checkpoint: Checkpoint, threads: int, style: Style) -> Runner | Unavailable:
    def start(model: Any, decoder: Decoder) -> models.PeerModel | Unavailable:
        largest = largest_inputs(model) if style == "int8_static" else {}
        return models.deepsparse(decoder, lambda: _weights(checkpoint), style, threads, largest)

    return _runner("deepsparse", checkpoint, start)


def llamacpp(checkpoint: Checkpoint, threads: int, style: str) -> Runner | Unavailable:
    return _runner(
        "llamacpp", checkpoint, lambda model, decoder: models.llamacpp(decoder, _arrays(model), style, threads)
    )


def _runner(
    runtime: str, checkpoint: Checkpoint, start: Callable[[Any, Decoder], models.PeerModel | Unavailable]
) -> Runner | Unavailable:
    """Starts a runner in `runtime`, an environment of `engine.peers.environments`."""
    family = families.of(checkpoint.path)
    if isinstance(family, EncoderDecoder):
        return Unavailable(f"{runtime} is given decoder-only models here, no encoder-decoder ({family.name})")
    python = python_of(runtime)
    if isinstance(python, Unavailable):
        return python
    model = checkpoints.load(checkpoint, torch.float32)
    started = start(model, Decoder.of(model.config.to_dict()))
    return started if isinstance(started, Unavailable) else PeerRunner(started)


@torch.inference_mode()
def largest_inputs(model: Any) -> dict[str, float]:
    """Returns the largest input magnitude of each linear, by name, over random tokens of a fixed seed."""
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
    """Returns views of the model's weights, not copies."""
    return {name: weight.numpy() for name, weight in model.state_dict().items()}
