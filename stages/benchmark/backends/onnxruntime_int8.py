"""ONNX Runtime's dynamic quantization: int8 weights per output channel, the head's too; uint8 activations per
tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.bench.decoding import Runner
    from engine.peers.contracts import Unavailable
    from stages.contracts import Checkpoint


class OnnxRuntimeInt8:
    quantized = False
    exact = False
    weight_bytes = 1.0

    def prepare(self, checkpoint: Checkpoint, threads: int) -> Runner | Unavailable:
        from stages.benchmark import peer_backends

        return peer_backends.onnxruntime(checkpoint, threads, "int8_dynamic")


BACKEND = OnnxRuntimeInt8()
