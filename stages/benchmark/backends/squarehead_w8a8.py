"""`stages.quantize.quantized.Int8Linear` in the blocks, fp32 elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.bench.decoding import Runner
    from engine.peers.contracts import Unavailable
    from stages.contracts import Checkpoint


class SquareheadW8A8:
    quantized = True
    exact = True
    weight_bytes = 1.0

    def prepare(self, checkpoint: Checkpoint, threads: int) -> Runner | Unavailable:
        import torch

        from engine.peers.contracts import Unavailable
        from stages import checkpoints
        from stages.benchmark.torch_backends import torch_runner
        from stages.quantize import schemes
        from stages.quantize.schemes import SCHEMES

        scheme = schemes.of(checkpoint)
        if scheme is not SCHEMES.get("w8a8"):
            return Unavailable("it runs models of quantize.scheme=w8a8")
        return torch_runner(checkpoints.load(checkpoint, torch.float32), checkpoint)


BACKEND = SquareheadW8A8()
