"""The sparse engine in fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.bench.decoding import Runner
    from engine.peers.contracts import Unavailable
    from stages.contracts import Checkpoint


class EngineFp32:
    quantized = False
    exact = True
    weight_bytes = 4.0

    def prepare(self, checkpoint: Checkpoint, threads: int) -> Runner | Unavailable:
        from stages.benchmark.engine_backends import engine_runner

        return engine_runner(checkpoint, "fp32")


BACKEND = EngineFp32()
