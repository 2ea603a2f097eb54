"""The sparse engine in bf16."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.bench.decoding import Runner
    from engine.peers.contracts import Unavailable
    from stages.contracts import Checkpoint


class EngineBf16:
    quantized = False
    exact = False
    weight_bytes = 2.0

    def prepare(self, checkpoint: Checkpoint, threads: int) -> Runner | Unavailable:
        from stages.benchmark.engine_backends import engine_runner

        return engine_runner(checkpoint, "bf16")


BACKEND = EngineBf16()
