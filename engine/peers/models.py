"""Whole decoders in the peers: batch 1, greedy, with their key-value cache, each in a process of its own."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.peers.contracts import Unavailable
from engine.peers.decoder import Decoder
from engine.peers.environments import python_of
from engine.peers.process import Peer

if TYPE_CHECKING:
    from engine.peers.onnx_graph import Style

Weights = Mapping[str, Any]
"""numpy fp32 arrays by their Hugging Face names."""

PART = 64
"""Tokens of a prompt that DeepSparse runs at once."""


class PeerModel:
    """A model in a peer's process. Raises EngineError when that process ends, or for more tokens than the context."""

    def __init__(self, peer: Peer, decoder: Decoder, weight_bytes: int | None, note: str) -> None:
        self.weight_bytes = weight_bytes
        """Read for each decoded token; None where the runtime stores them in a form of its own."""
        self.note = f"{note}; {1e6 * _round_trip_seconds(peer):.0f} us a call go to the pipe"
        self.pid = peer.pid
        self._peer, self._decoder = peer, decoder
        self._length = 0

    def prefill(self, ids: list[int]) -> int:
        """Runs a prompt from an empty cache and returns the next token."""
        self._decoder.check_length(len(ids))
        self._length = len(ids)
        return int(self._peer.call("prefill", ids=ids))

    def decode(self, token: int) -> int:
        self._decoder.check_length(self._length + 1)
        self._length += 1
        return int(self._peer.call("decode", token=token))

    def logits(self) -> list[float]:
        """Returns the logits of the last token run."""
        found: list[float] = self._peer.call("logits")
        return found

    def close(self) -> None:
        self._peer.close()


def onnxruntime(decoder: Decoder, weights: Weights, style: Style, threads: int) -> PeerModel | Unavailable:
    python = python_of("onnxruntime")
    if isinstance(python, Unavailable):
        return python
    from engine.peers import onnx_decoder

    peer = Peer(python, "run_onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        read = onnx_decoder.write(decoder, weights, path, style)
        peer.call("load_model", path=str(path), threads=threads, **_shapes(decoder))
    return PeerModel(peer, decoder, read, {"fp32": "head fp32"}.get(style, "head int8"))


def deepsparse(
    decoder: Decoder, weights: Callable[[], Weights], style: Style, threads: int, largest: Mapping[str, float]
) -> PeerModel | Unavailable:
    """Returns the model in DeepSparse. `weights` loads them, for each compilation again. `largest` has, for style
    int8_static, the largest input magnitude of each linear, by name."""
    python = python_of("deepsparse")
    if isinstance(python, Unavailable):
        return python
    note = "head fp32" if style == "fp32" else "head int8; static activation scales, one a tensor: for speed only"
    return DeepSparseModel(Peer(python, "run_deepsparse"), decoder, note, weights, style, threads, largest)


class DeepSparseModel(PeerModel):
    """Its graphs have a fixed length: they are compiled with the first prompt, and anew when they become too short.

    Prompts go in parts of 64 tokens and the rest token by token, as in DeepSparse's own text generation: in graphs of
    other lengths its cache gives wrong results.
    """

    def __init__(
        self,
        peer: Peer,
        decoder: Decoder,
        note: str,
        weights: Callable[[], Weights],
        style: Style,
        threads: int,
        largest: Mapping[str, float],
    ) -> None:
        super().__init__(peer, decoder, None, note)
        self._weights, self._style, self._threads, self._largest = weights, style, threads, largest
        self._ids: list[int] = []
        self._room = PART
        self._compiled = 0

    def prefill(self, ids: list[int]) -> int:
        self._decoder.check_length(len(ids))
        if len(ids) + self._room > self._compiled:
            self._compile(len(ids) + self._room)
        self._ids = list(ids)
        return super().prefill(ids)

    def decode(self, token: int) -> int:
        # its cache drops the oldest token with the last of the graph's positions, not after it
        if len(self._ids) == self._compiled - 1:
            self._room *= 2
            self.prefill(self._ids)
        self._ids.append(token)
        return super().decode(token)

    def _compile(self, tokens: int) -> None:
        from engine.peers.onnx_decoder import Lengths, write

        self._compiled = PART * math.ceil(tokens / PART)
        weights = self._weights()
        with tempfile.TemporaryDirectory() as folder:
            paths = {}
            for kind, new in (("part", PART), ("token", 1)):
                path = Path(folder) / f"{kind}.onnx"
                lengths = Lengths(new, self._compiled - new)
                write(self._decoder, weights, path, self._style, lengths=lengths, largest=self._largest)
                paths[kind] = str(path)
            shapes = _shapes(self._decoder)
            self._peer.call("load_model", length=self._compiled, threads=self._threads, **paths, **shapes)


def llamacpp(decoder: Decoder, weights: Weights, file_type: str, threads: int) -> PeerModel | Unavailable:
    """Returns the model in llama.cpp. `file_type` is Q8_0 or Q4_K_M; llama.cpp quantizes, and falls back to other types
    if a width does not divide."""
    python = python_of("llamacpp")
    if isinstance(python, Unavailable):
        return python
    from engine.peers import llama_gguf

    peer = Peer(python, "run_llamacpp")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "model.gguf", Path(folder) / "quantized.gguf"
        llama_gguf.write(decoder, weights, source)
        peer.call("quantize", source=str(source), target=str(target), file_type=file_type, threads=threads)
        source.unlink()
        types, read = llama_gguf.tensor_types(target)
        context, vocabulary = decoder.context, decoder.vocabulary
        peer.call("load_model", path=str(target), threads=threads, vocabulary=vocabulary, context=context)
    used = ", ".join(f"{count} {name}" for name, count in types.items())
    return PeerModel(peer, decoder, read, f"matrices: {used}; {peer.call('system_info')}")


def _shapes(decoder: Decoder) -> dict[str, int]:
    return {
        "layers": decoder.layers,
        "kv_heads": decoder.kv_heads,
        "head_dim": decoder.head_dim,
        "sharing": decoder.heads // decoder.kv_heads,
    }


def _round_trip_seconds(peer: Peer) -> float:
    """Returns the median overhead of a call."""
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        peer.call("ping")
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
