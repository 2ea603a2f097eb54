"""llama.cpp in Q4_K_M: 4-bit blocks, some matrices in more bits; the row's note counts the types."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.bench.decoding import Runner
    from engine.peers.contracts import Unavailable
    from stages.contracts import Checkpoint


class LlamaCppQ4K:
    quantized = False
    exact = False
    weight_bytes = 4.0

    def prepare(self, checkpoint: Checkpoint, threads: int) -> Runner | Unavailable:
        from stages.benchmark import peer_backends

        return peer_backends.llamacpp(checkpoint, threads, "Q4_K_M")


BACKEND = LlamaCppQ4K()
