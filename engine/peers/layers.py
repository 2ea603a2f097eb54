"""Single linear layers in the peers that run ONNX graphs."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.peers.contracts import LayerPeer, TimedLayer, Unavailable
from engine.peers.environments import python_of
from engine.peers.process import Peer

if TYPE_CHECKING:
    from engine.peers.onnx_graph import Style

LARGEST_INPUT = 4.5
"""Magnitude beyond which int8_static clips the inputs, which are drawn from a normal distribution."""


@dataclass(frozen=True)
class OnnxLayerPeer:
    """A runtime in a form of the layer (`onnx_graph.Style`)."""

    name: str
    runtime: str
    style: Style

    def prepare(self, W_OI: Any, tokens: int, threads: int) -> TimedLayer | Unavailable:
        python = python_of(self.runtime)
        if isinstance(python, Unavailable):
            return python
        from engine.peers.onnx_graph import Graph, Input

        graph, (O, I) = Graph(), W_OI.shape  # noqa: E741
        graph.linear("x", "layer", W_OI, style=self.style, largest=LARGEST_INPUT, out="y")
        peer = Peer(python, f"run_{self.runtime}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "layer.onnx"
            graph.save(path, [Input("x", (tokens, I))], {"y": (tokens, O)})
            peer.call("load_layer", path=str(path), tokens=tokens, width=I, threads=threads)
        return PeerLayer(peer)


@dataclass(frozen=True)
class PeerLayer:
    peer: Peer

    def seconds(self, flush_bytes: int) -> float:
        return float(self.peer.call("seconds", flush_bytes=flush_bytes))

    def close(self) -> None:
        self.peer.close()


LAYER_PEERS: dict[str, LayerPeer] = {
    peer.name: peer
    for peer in (
        OnnxLayerPeer("onnxruntime_fp32", "onnxruntime", "fp32"),
        OnnxLayerPeer("onnxruntime_int8", "onnxruntime", "int8_dynamic"),
        OnnxLayerPeer("deepsparse_fp32", "deepsparse", "fp32"),
        OnnxLayerPeer("deepsparse_int8", "deepsparse", "int8_static"),
    )
}
