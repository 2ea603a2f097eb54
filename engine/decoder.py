"""Fast batch-1 decoding of Llama-like models: a whole step in one call of the compiled code.

A transformers forward pass of one token costs some hundred microseconds of Python a layer, which on a small sparse
model is most of the time. Prompts still go through the transformers model, whose keys and values are then taken over.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine import kernels
from engine.errors import EngineError
from engine.kernels import Matrix
from engine.linear import EngineLinear, same_scale
from engine.weights import PackedWeight

MODEL_TYPES = ("llama", "mistral", "qwen2")
ROTATIONS = ("default", "linear", "llama3")
"""Kinds of rotary embedding whose frequencies do not change with the length."""
PHASES = ("qkv", "attention", "out", "gate_up", "gated", "down", "head")
"""Of a step, as engine/native/decoder.h counts them; norms stand with the product that follows them."""


def unsupported(model: Any) -> str | None:
    """Why this model cannot be decoded here, in one line; None if it can."""
    if reason := kernels.unavailable():
        return reason
    config = model.config
    if config.model_type not in MODEL_TYPES:
        return f"{config.model_type} is not among the architectures: {', '.join(MODEL_TYPES)}"
    if getattr(config, "hidden_act", "silu") != "silu":
        return f"the activation is {config.hidden_act}, expected silu"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "attention with a sliding window"
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotation not in ROTATIONS:
        return f"rotary embedding {rotation!r}, expected one of {', '.join(ROTATIONS)}"
    if not any(isinstance(module, EngineLinear) for module in model.modules()):
        return "no linear of it was converted; see engine.convert"
    for layer in model.model.layers:
        for linears in (_sharing_attention(layer.self_attn), _sharing_mlp(layer.mlp)):
            scales = [getattr(linear, "input_scale", None) for linear in linears]
            if any(not same_scale(scale, scales[0]) for scale in scales):
                return "linears that share an input divide it by different scales"
    return None


class _Stage(ctypes.Structure):
    _fields_ = [("parts", ctypes.c_void_p * 3), ("count", ctypes.c_int), ("input_scale", ctypes.c_void_p)]


class _Layer(ctypes.Structure):
    _fields_ = [
        ("qkv", _Stage),
        ("out", _Stage),
        ("gate_up", _Stage),
        ("down", _Stage),
        ("attention_norm", ctypes.c_void_p),
        ("mlp_norm", ctypes.c_void_p),
    ]


class _Decoder(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("hidden", "intermediate", "heads", "key_heads", "head_size")],
        ("context", ctypes.c_int64),
        ("layer_count", ctypes.c_int64),
        *[(name, ctypes.c_float) for name in ("epsilon", "attention_scale", "rotation_scale")],
        *[(name, ctypes.c_void_p) for name in ("frequencies", "embedding", "final_norm", "layers")],
        ("head", _Stage),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
    ]


@dataclass
class Profile:
    """Where the steps' time went."""

    steps: int
    seconds: dict[str, float]
    """By phase, waiting for the slowest thread included."""
    weight_bytes: dict[str, int]
    """Read by one step, of the phases that are products."""


class Decoder:
    """One sequence, decoded token by token. The model keeps the weights; this adds a cache of `context` positions.

    Raises EngineError where `unsupported` has a reason.
    """

    def __init__(self, model: Any, context: int) -> None:
        if reason := unsupported(model):
            raise EngineError(f"this model cannot be decoded by the engine: {reason}")
        self._model = model
        self._alive: list[Any] = []  # whatever the structure points into
        config, body = model.config, model.model
        attention = body.layers[0].self_attn
        self.context = context
        self.position = 0
        self._seconds = (ctypes.c_double * len(PHASES))()
        self._steps = 0
        self._bytes: Counter[str] = Counter()
        heads, size = config.num_attention_heads, attention.head_dim
        key_heads = config.num_key_value_heads
        shape = (len(body.layers), key_heads, context, size)
        self._keys, self._values = torch.zeros(shape), torch.zeros(shape)
        layers = (_Layer * len(body.layers))(*[self._layer(layer) for layer in body.layers])
        self._alive.append(layers)
        head = self._stage("head", [model.get_output_embeddings()])
        self._logits = torch.empty(model.get_output_embeddings().out_features)
        self._structure = _Decoder(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=heads,
            key_heads=key_heads,
            head_size=size,
            context=context,
            layer_count=len(body.layers),
            epsilon=config.rms_norm_eps,
            attention_scale=attention.scaling,
            rotation_scale=body.rotary_emb.attention_scaling,
            frequencies=self._floats(body.rotary_emb.inv_freq),
            embedding=self._floats(body.embed_tokens.weight),
            final_norm=self._floats(body.norm.weight),
            layers=ctypes.addressof(layers),
            head=head,
            keys=self._keys.data_ptr(),
            values=self._values.data_ptr(),
        )
        self.weight_bytes = self._bytes.total()
        """Read by one step; norms and the embedding's row left out."""

    @torch.no_grad()
    def prefill(self, ids_1T: Tensor) -> Tensor:
        """Runs a prompt from an empty cache; `logits_V` of its last token."""
        tokens = ids_1T.shape[1]
        if ids_1T.shape[0] != 1 or not 0 < tokens <= self.context:
            raise EngineError(f"the prompt is {list(ids_1T.shape)}, expected [1, T] with T from 1 to {self.context}")
        output = self._model(input_ids=ids_1T, use_cache=True, logits_to_keep=1)
        for number, layer in enumerate(output.past_key_values.layers):
            self._keys[number, :, :tokens] = layer.keys[0]
            self._values[number, :, :tokens] = layer.values[0]
        self.position = tokens
        logits_V: Tensor = output.logits[0, -1]
        return logits_V

    def step(self, token: int) -> Tensor:
        """Runs one more token; `logits_V`, overwritten by the next step."""
        if self.position >= self.context:
            raise EngineError(f"the cache holds {self.context} positions and is full; ask for a larger context")
        if not 0 <= token < self._model.config.vocab_size:
            raise EngineError(f"token {token} is not in the vocabulary of {self._model.config.vocab_size}")
        address, threads = ctypes.addressof(self._structure), torch.get_num_threads()
        kernels.decode(address, token, self.position, self._logits, threads, self._seconds)
        self.position += 1
        self._steps += 1
        return self._logits

    def profile(self) -> Profile:
        """Of all steps since the last call."""
        found = Profile(self._steps, dict(zip(PHASES, self._seconds, strict=True)), dict(self._bytes))
        self._steps = 0
        self._seconds = (ctypes.c_double * len(PHASES))()
        return found

    def _layer(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        return _Layer(
            qkv=self._stage("qkv", _sharing_attention(attention)),
            out=self._stage("out", [attention.o_proj]),
            gate_up=self._stage("gate_up", _sharing_mlp(mlp)),
            down=self._stage("down", [mlp.down_proj]),
            attention_norm=self._floats(layer.input_layernorm.weight),
            mlp_norm=self._floats(layer.post_attention_layernorm.weight),
        )

    def _stage(self, phase: str, linears: list[Any]) -> _Stage:
        first = linears[0]
        shared = getattr(first, "shared", None)
        matrices = [shared.matrix()] if shared else [_matrix(linear) for linear in linears]
        self._alive += matrices
        self._bytes[phase] += sum(matrix.bytes for matrix in matrices)
        scale = getattr(first, "input_scale", None)
        parts = (ctypes.c_void_p * 3)(*[matrix.handle for matrix in matrices])
        return _Stage(parts, len(matrices), None if scale is None else self._floats(scale))

    def _floats(self, tensor: Tensor) -> int:
        kept = tensor.detach().float().contiguous()
        self._alive.append(kept)
        return int(kept.data_ptr())


def _sharing_attention(attention: Any) -> list[Any]:
    return [attention.q_proj, attention.k_proj, attention.v_proj]


def _sharing_mlp(mlp: Any) -> list[Any]:
    return [mlp.gate_proj, mlp.up_proj]


def _matrix(linear: nn.Module) -> Matrix:
    if isinstance(linear, EngineLinear):
        return linear.matrix()
    assert isinstance(linear, nn.Linear)
    shape = (linear.out_features, linear.in_features)
    packed = PackedWeight(shape, linear.weight.detach().float().reshape(-1), None, None, None)
    return Matrix(packed, None if linear.bias is None else linear.bias.detach().float())
