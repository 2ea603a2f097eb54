"""A benchmark backend: torch in fp32, as the checkpoint is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.bench.decoding import Runner
    from engine.peers.contracts import Unavailable
    from stages.contracts import Checkpoint


class Eager:
    quantized = False
    exact = True
    weight_bytes = 4.0

    def prepare(self, checkpoint: Checkpoint, threads: int) -> Runner | Unavailable:
        import torch

        from stages import checkpoints
        from stages.benchmark.torch_backends import torch_runner

        return torch_runner(checkpoints.load(checkpoint, torch.float32), checkpoint)


BACKEND = Eager()
