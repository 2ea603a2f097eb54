"""The structure that the compiled decoding step runs, for each architecture it knows: a decoder as a list of residual
blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from engine.linear import EngineLinear, same_scale

Kind = Literal["self_attention", "cross_attention", "mlp"]
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""The step's name of an activation, by transformers' name."""
ROTATIONS = ("default", "linear", "llama3")
"""Kinds of rotary embedding whose frequencies do not change with the length."""


@dataclass(frozen=True)
class Block:
    """`h += out(middle(inputs(norm(h))))`; the middle is attention, or the activation."""

    kind: Kind
    norm: Any
    inputs: list[Any]
    """Linears that read the same input: query, key and value; the query alone; or (gate and) up."""
    out: Any
    encoded: tuple[Any, Any] | None = None
    """Linears of cross-attention that compute keys and values of the encoder's states."""


@dataclass(frozen=True)
class Layout:
    blocks: list[Block]
    heads: int
    key_heads: int
    head_size: int
    epsilon: float
    """Epsilon of the norms."""
    attention_scale: float
    """Scale of query times key."""
    activation: str
    """One of transformers' names in `ACTIVATIONS`; for a gated MLP the gate's."""
    embedding: Tensor
    final_norm: Any
    head: Any
    head_scale: float = 1.0
    """Scale of the head's input."""
    frequencies: Tensor | None = None
    """Frequencies of rotary positions, head_size / 2."""
    rotation_scale: float = 1.0
    positions: Tensor | None = None
    """Learned position embeddings, position x hidden."""
    position_bias: Callable[[int], Tensor] | None = None
    """Function from a context to the bias of self-attention's scores, heads x context; a key d positions back has the
    entry context - 1 - d."""
    hides_padding: bool = False
    """Whether cross-attention sees only what the encoder's attention mask shows; otherwise everything."""


@dataclass(frozen=True)
class Architecture:
    refused: Callable[[Any], str | None]
    """Function from a configuration to what the step cannot compute of it, in one line; None: nothing."""
    layout: Callable[[Any], Layout]
    """Function from a model that is not refused to its layout."""
    encoder_decoder: bool = field(default=False)


def unsupported(model: Any) -> str | None:
    """Returns in one line why the compiled step cannot run this model; None if it can."""
    config = model.config
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        return f"{config.model_type} is not among the architectures: {', '.join(ARCHITECTURES)}"
    if bool(config.is_encoder_decoder) != architecture.encoder_decoder:
        return f"this {config.model_type} has no encoder" if architecture.encoder_decoder else "it has an encoder"
    if reason := architecture.refused(config):
        return reason
    if not any(isinstance(module, EngineLinear) for module in model.modules()):
        return "no linear of it was converted; see engine.convert"
    layout = architecture.layout(model)
    if layout.activation not in ACTIVATIONS:
        return f"the activation is {layout.activation}, expected one of {', '.join(ACTIVATIONS)}"
    for block in layout.blocks:
        scales = [getattr(linear, "input_scale", None) for linear in block.inputs]
        if any(not same_scale(scale, scales[0]) for scale in scales):
            return "linears that share an input divide it by different scales"
    return None


def of(model: Any) -> Layout:
    """Returns the layout of a model without a reason in `unsupported`."""
    return ARCHITECTURES[model.config.model_type].layout(model)


# ---- Llama and those that differ from it in sizes and biases only ----


def _llama_refused(config: Any) -> str | None:
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "attention with a sliding window"
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotation not in ROTATIONS:
        return f"rotary embedding {rotation!r}, expected one of {', '.join(ROTATIONS)}"
    return None


def _llama(model: Any) -> Layout:
    config, body = model.config, model.model
    blocks = []
    for layer in body.layers:
        attention, mlp = layer.self_attn, layer.mlp
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        blocks += [
            Block("self_attention", layer.input_layernorm, projections, attention.o_proj),
            Block("mlp", layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj], mlp.down_proj),
        ]
    attention = body.layers[0].self_attn
    return Layout(
        blocks,
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        head_size=attention.head_dim,
        epsilon=config.rms_norm_eps,
        attention_scale=attention.scaling,
        activation=config.hidden_act,
        embedding=body.embed_tokens.weight,
        final_norm=body.norm,
        head=model.get_output_embeddings(),
        frequencies=body.rotary_emb.inv_freq,
        rotation_scale=body.rotary_emb.attention_scaling,
    )


# ---- T5 ----


def _t5(model: Any) -> Layout:
    config, decoder = model.config, model.decoder
    blocks = []
    for layer in decoder.block:
        own, cross, mlp = layer.layer
        attention, crossing, dense = own.SelfAttention, cross.EncDecAttention, mlp.DenseReluDense
        up = [dense.wi_0, dense.wi_1] if config.is_gated_act else [dense.wi]
        blocks += [
            Block("self_attention", own.layer_norm, [attention.q, attention.k, attention.v], attention.o),
            Block("cross_attention", cross.layer_norm, [crossing.q], crossing.o, (crossing.k, crossing.v)),
            Block("mlp", mlp.layer_norm, up, dense.wo),
        ]
    first = decoder.block[0].layer[0].SelfAttention

    def position_bias(context: int) -> Tensor:
        bias_1H1C: Tensor = first.compute_bias(1, context, past_seen_tokens=context - 1)
        return bias_1H1C[0, :, 0]

    return Layout(
        blocks,
        heads=config.num_heads,
        key_heads=config.num_heads,
        head_size=config.d_kv,
        epsilon=config.layer_norm_epsilon,
        attention_scale=first.scaling,
        activation=config.dense_act_fn,
        embedding=decoder.embed_tokens.weight,
        final_norm=decoder.final_layer_norm,
        head=model.get_output_embeddings(),
        # mT5 has no such setting, and does not scale
        head_scale=config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0,
        position_bias=position_bias,
        hides_padding=True,
    )


# ---- Whisper ----


def _whisper(model: Any) -> Layout:
    config, decoder = model.config, model.model.decoder
    blocks = []
    for layer in decoder.layers:
        own, cross = layer.self_attn, layer.encoder_attn
        norms = layer.self_attn_layer_norm, layer.encoder_attn_layer_norm, layer.final_layer_norm
        blocks += [
            Block("self_attention", norms[0], [own.q_proj, own.k_proj, own.v_proj], own.out_proj),
            Block("cross_attention", norms[1], [cross.q_proj], cross.out_proj, (cross.k_proj, cross.v_proj)),
            Block("mlp", norms[2], [layer.fc1], layer.fc2),
        ]
    attention = decoder.layers[0].self_attn
    return Layout(
        blocks,
        heads=attention.num_heads,
        key_heads=attention.num_heads,
        head_size=attention.head_dim,
        epsilon=decoder.layer_norm.eps,
        attention_scale=attention.scaling,
        activation=config.activation_function,
        embedding=decoder.embed_tokens.weight,
        final_norm=decoder.layer_norm,
        head=model.get_output_embeddings(),
        positions=decoder.embed_positions.weight,
    )


def _nothing(config: Any) -> None:
    return None


_LLAMA = Architecture(_llama_refused, _llama)
_T5 = Architecture(_nothing, _t5, encoder_decoder=True)
ARCHITECTURES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "t5": _T5,
    "mt5": _T5,
    "whisper": Architecture(_nothing, _whisper, encoder_decoder=True),
}
"""Architectures by transformers' model type."""
