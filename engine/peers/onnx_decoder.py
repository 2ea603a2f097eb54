"""A decoder as an ONNX graph with a key-value cache.

Inputs: input_ids [1, T] and positions [1, T] (int64), mask [1, 1, R, S] (fp32, added to the scores), and for each layer
past_key_values.L.key and .value [1, kv_heads, P, head_dim]. Outputs: logits [1, V] of the last token, and
present.L.key and .value [1, kv_heads, S, head_dim], the past followed by the new; S = P + T.

The queries that share a key head are rows of one product, so the mask of the T tokens is repeated for each of them:
R = T * heads / kv_heads. (Repeated inside the graph, DeepSparse 1.8 does not compile it.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.peers.decoder import EMBEDDING, FINAL_NORM, HEAD, Decoder
from engine.peers.onnx_graph import Dimension, Graph, Input, Style


@dataclass(frozen=True)
class Lengths:
    """T and P: names if they are free (ONNX Runtime), numbers if the runtime needs them (DeepSparse)."""

    new: Dimension = "new"
    past: Dimension = "past"

    @property
    def total(self) -> Dimension:
        return self.past + self.new if isinstance(self.past, int) and isinstance(self.new, int) else "total"

    def rows(self, sharing: int) -> Dimension:
        """Returns the rows of the scores, where so many queries share a key head."""
        return self.new * sharing if isinstance(self.new, int) else "rows"


def write(
    decoder: Decoder,
    weights: Mapping[str, Any],
    path: Path,
    style: Style,
    *,
    lengths: Lengths | None = None,
    largest: Mapping[str, float] | None = None,
) -> int:
    """Writes the graph and returns the bytes of weights that one token reads: all but the embedding's other rows.

    `largest` has, for style int8_static, the largest input magnitude of each linear, by name.
    """
    writer = _Writer(decoder, weights, style, largest or {})
    lengths = lengths or Lengths()
    cache = (1, decoder.kv_heads, lengths.past, decoder.head_dim)
    names = [f"{layer}.{part}" for layer in range(decoder.layers) for part in ("key", "value")]
    writer.run()
    writer.graph.save(
        path,
        [
            Input("input_ids", (1, lengths.new), integer=True),
            Input("positions", (1, lengths.new), integer=True),
            Input("mask", (1, 1, lengths.rows(decoder.heads // decoder.kv_heads), lengths.total)),
            *(Input(f"past_key_values.{name}", cache) for name in names),
        ],
        {"logits": (1, decoder.vocabulary)}
        | {f"present.{name}": (1, decoder.kv_heads, lengths.total, decoder.head_dim) for name in names},
    )
    unread = (EMBEDDING, "cos", "sin")  # tables of which a token reads one row
    return sum(count for name, count in writer.graph.weight_bytes().items() if name not in unread)


class _Writer:
    def __init__(self, decoder: Decoder, weights: Mapping[str, Any], style: Style, largest: Mapping[str, float]):
        self.graph = Graph()
        self._decoder, self._weights, self._style, self._largest = decoder, weights, style, largest

    def run(self) -> None:
        graph, decoder = self.graph, self._decoder
        h_1TD = graph.add("Gather", graph.constant(self._weights[f"{EMBEDDING}.weight"], EMBEDDING), "input_ids")
        cos_11TE, sin_11TE = (self._rotary_table(kind) for kind in ("cos", "sin"))
        for layer in range(decoder.layers):
            block = f"model.layers.{layer}"
            x = self._norm(h_1TD, f"{block}.input_layernorm")
            h_1TD = graph.add("Add", h_1TD, self._attention(x, layer, cos_11TE, sin_11TE))
            x = self._norm(h_1TD, f"{block}.post_attention_layernorm")
            h_1TD = graph.add("Add", h_1TD, self._mlp(x, f"{block}.mlp"))
        last_1D = graph.add("Gather", h_1TD, graph.constant(np.int64(-1), "last"), axis=1)
        self._linear(self._norm(last_1D, FINAL_NORM), HEAD, decoder.head, out="logits")

    def _attention(self, x: str, layer: int, cos: str, sin: str) -> str:
        graph, decoder = self.graph, self._decoder
        name = f"model.layers.{layer}.self_attn"
        q_1HTE, k_1KTE, v_1KTE = (
            self._split(self._linear(x, f"{name}.{part}_proj"), heads)
            for part, heads in (("q", decoder.heads), ("k", decoder.kv_heads), ("v", decoder.kv_heads))
        )
        q_1HTE, k_1KTE = (self._rotate(value, cos, sin) for value in (q_1HTE, k_1KTE))
        k_1KSE, v_1KSE = (
            graph.add("Concat", f"past_key_values.{layer}.{part}", new, axis=2, name=f"present.{layer}.{part}")
            for part, new in (("key", k_1KTE), ("value", v_1KTE))
        )
        scale = graph.constant(np.float32(decoder.head_dim**-0.5), "attention_scale")
        q_1KRE = self._reshape(graph.add("Mul", q_1HTE, scale), 1, decoder.kv_heads, -1, decoder.head_dim)
        scores_1KRS = graph.add("MatMul", q_1KRE, graph.add("Transpose", k_1KSE, perm=[0, 1, 3, 2]))
        p_1KRS = graph.add("Softmax", graph.add("Add", scores_1KRS, "mask"), axis=-1)
        y_1HTE = self._reshape(graph.add("MatMul", p_1KRS, v_1KSE), 1, decoder.heads, -1, decoder.head_dim)
        y_1THE = graph.add("Transpose", y_1HTE, perm=[0, 2, 1, 3])
        return self._linear(self._reshape(y_1THE, 1, -1, decoder.heads * decoder.head_dim), f"{name}.o_proj")

    def _mlp(self, x: str, name: str) -> str:
        graph = self.graph
        gate, up = (self._linear(x, f"{name}.{part}_proj") for part in ("gate", "up"))
        silu = graph.add("Mul", gate, graph.add("Sigmoid", gate))
        return self._linear(graph.add("Mul", silu, up), f"{name}.down_proj")

    def _linear(self, x: str, name: str, stored: str = "", out: str = "") -> str:
        """Adds a linear. `stored` is the module that holds its weight, if that is another one."""
        weight = self._weights[f"{stored or name}.weight"]
        bias = self._weights.get(f"{name}.bias")
        largest = self._largest[name] if self._style == "int8_static" else 0.0
        return self.graph.linear(x, name, weight, bias, style=self._style, largest=largest, out=out)

    def _norm(self, x: str, name: str) -> str:
        graph = self.graph
        square = graph.add("Pow", x, graph.constant(np.float32(2), "two"))
        mean = graph.add("ReduceMean", square, axes=[-1], keepdims=1)
        epsilon = graph.constant(np.float32(self._decoder.norm_epsilon), "epsilon")
        root = graph.add("Sqrt", graph.add("Add", mean, epsilon))
        return graph.add("Mul", graph.add("Div", x, root), graph.constant(self._weights[f"{name}.weight"], name))

    def _split(self, x_1TD: str, heads: int) -> str:
        return self.graph.add(
            "Transpose", self._reshape(x_1TD, 1, -1, heads, self._decoder.head_dim), perm=[0, 2, 1, 3]
        )

    def _rotary_table(self, kind: str) -> str:
        """Adds cosines or sines of every position, both halves, looked up for this call's positions: [1, 1, T,
        head_dim]."""
        decoder = self._decoder
        half = np.arange(0, decoder.head_dim, 2, dtype=np.float64) / decoder.head_dim
        angles = np.outer(np.arange(decoder.context), decoder.rope_theta**-half)
        table = np.concatenate([getattr(np, kind)(angles)] * 2, axis=1).astype(np.float32)
        rows = self.graph.add("Gather", self.graph.constant(table[None], kind), "positions", axis=1)
        return self._reshape(rows, 1, 1, -1, decoder.head_dim)

    def _rotate(self, x: str, cos: str, sin: str) -> str:
        graph, half = self.graph, self._decoder.head_dim // 2
        first, second = (self._slice(x, start, start + half) for start in (0, half))
        turned = graph.add("Concat", graph.add("Neg", second), first, axis=-1)
        return graph.add("Add", graph.add("Mul", x, cos), graph.add("Mul", turned, sin))

    def _slice(self, x: str, start: int, end: int) -> str:
        """Slices the last axis."""
        bounds = [self.graph.constant(np.array([at], np.int64), f"index.{at}") for at in (start, end, 3)]
        return self.graph.add("Slice", x, *bounds)

    def _reshape(self, x: str, *shape: int) -> str:
        name = "shape." + ".".join(map(str, shape))
        return self.graph.add("Reshape", x, self.graph.constant(np.array(shape, np.int64), name))
