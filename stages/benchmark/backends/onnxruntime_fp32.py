"""ONNX Runtime in fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.bench.decoding import Runner
    from engine.peers.contracts import Unavailable
    from stages.contracts import Checkpoint


class OnnxRuntimeFp32:
    quantized = False
    exact = True
    weight_bytes = 4.0

    def prepare(self, checkpoint: Checkpoint, threads: int) -> Runner | Unavailable:
        from stages.benchmark import peer_backends

        return peer_backends.onnxruntime(checkpoint, threads, "fp32")


BACKEND = OnnxRuntimeFp32()
