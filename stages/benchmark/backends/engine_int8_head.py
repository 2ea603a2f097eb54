"""Like engine_int8, with the head in int8 too, as in llama.cpp's and ONNX Runtime's int8."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.bench.decoding import Runner
    from engine.peers.contracts import Unavailable
    from stages.contracts import Checkpoint


class EngineInt8Head:
    quantized = True
    exact = False
    weight_bytes = 1.0

    def prepare(self, checkpoint: Checkpoint, threads: int) -> Runner | Unavailable:
        from stages.benchmark.engine_backends import engine_runner

        return engine_runner(checkpoint, "int8", head="int8")


BACKEND = EngineInt8Head()
