"""DeepSparse in int8, licence as deepsparse_fp32's: weights per output channel, the head's too.

Activations have static scales, one a tensor, the only ones that it runs fast. They come from random tokens: its speed
counts here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.bench.decoding import Runner
    from engine.peers.contracts import Unavailable
    from stages.contracts import Checkpoint


class DeepSparseInt8:
    quantized = False
    exact = False
    weight_bytes = 1.0

    def prepare(self, checkpoint: Checkpoint, threads: int) -> Runner | Unavailable:
        from stages.benchmark import peer_backends

        return peer_backends.deepsparse(checkpoint, threads, "int8_static")


BACKEND = DeepSparseInt8()
