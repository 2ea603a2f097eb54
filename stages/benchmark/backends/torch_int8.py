"""torch.ao's dynamic quantization of every linear, the head included: int8 weights and uint8 activations, both per
tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.bench.decoding import Runner
    from engine.peers.contracts import Unavailable
    from stages.contracts import Checkpoint


class TorchInt8:
    quantized = False
    exact = False
    weight_bytes = 1.0

    def prepare(self, checkpoint: Checkpoint, threads: int) -> Runner | Unavailable:
        import warnings

        import torch
        from torch import nn

        from engine.peers.contracts import Unavailable
        from stages import checkpoints
        from stages.benchmark.torch_backends import torch_runner

        quantization = getattr(torch.ao, "quantization", None)
        if quantization is None or torch.backends.quantized.engine == "none":
            return Unavailable("this torch has no dynamic quantization for this CPU")
        with warnings.catch_warnings():
            # deprecated in favour of torchao, and still what torch alone offers
            warnings.simplefilter("ignore")
            model = checkpoints.load(checkpoint, torch.float32)
            quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)
        return torch_runner(model, checkpoint)


BACKEND = TorchInt8()
