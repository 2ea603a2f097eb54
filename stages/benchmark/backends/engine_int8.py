"""The sparse engine on the int8 weights of the quantize stage; the head stays fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.bench.decoding import Runner
    from engine.peers.contracts import Unavailable
    from stages.contracts import Checkpoint


class EngineInt8:
    quantized = True
    exact = True
    weight_bytes = 1.0

    def prepare(self, checkpoint: Checkpoint, threads: int) -> Runner | Unavailable:
        from stages.benchmark.engine_backends import engine_runner

        return engine_runner(checkpoint, "int8")


BACKEND = EngineInt8()
