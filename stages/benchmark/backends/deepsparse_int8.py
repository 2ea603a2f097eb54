"""DeepSparse in int8: weights per output channel, the head's included. The licence is that of deepsparse_fp32.

Activations have static scales, one for each tensor: the only kind that it runs fast. They come from random tokens,
since only the speed is measured.
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
