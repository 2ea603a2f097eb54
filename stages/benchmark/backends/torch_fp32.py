"""torch in fp32: the baseline of speed-ups."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.bench.decoding import Runner
    from engine.peers.contracts import Unavailable
    from stages.contracts import Checkpoint


class TorchFp32:
    quantized = False
    exact = True
    weight_bytes = 4.0

    def prepare(self, checkpoint: Checkpoint, threads: int) -> Runner | Unavailable:
        import torch

        from stages.benchmark.torch_backends import as_transformers_has_it, torch_runner

        return torch_runner(as_transformers_has_it(checkpoint, torch.float32), checkpoint)


BACKEND = TorchFp32()
