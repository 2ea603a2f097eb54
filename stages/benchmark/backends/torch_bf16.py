"""torch in bf16, on CPUs that have instructions for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.bench.decoding import Runner
    from engine.peers.contracts import Unavailable
    from stages.contracts import Checkpoint


class TorchBf16:
    quantized = False
    exact = False
    weight_bytes = 2.0

    def prepare(self, checkpoint: Checkpoint, threads: int) -> Runner | Unavailable:
        import torch

        from engine import cpu
        from engine.peers.contracts import Unavailable
        from stages.benchmark.torch_backends import as_transformers_has_it, torch_runner

        if not cpu.has_bf16():
            return Unavailable("this CPU has no bf16 instructions")
        return torch_runner(as_transformers_has_it(checkpoint, torch.bfloat16), checkpoint)


BACKEND = TorchBf16()
