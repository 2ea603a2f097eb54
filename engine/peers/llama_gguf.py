"""Writes a decoder as a GGUF file of fp32 tensors, for llama.cpp. It has no vocabulary: it is fed token ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.peers.decoder import EMBEDDING, FINAL_NORM, HEAD, Decoder

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""llama.cpp's names of a block's modules, by Hugging Face's."""


def write(decoder: Decoder, weights: Mapping[str, Any], path: Path) -> None:
    import gguf

    # llama.cpp knows Mistral as a Llama
    writer = gguf.GGUFWriter(path, "qwen2" if decoder.family == "qwen2" else "llama")
    writer.add_block_count(decoder.layers)
    writer.add_context_length(decoder.context)
    writer.add_embedding_length(decoder.width)
    writer.add_feed_forward_length(decoder.mlp_width)
    writer.add_head_count(decoder.heads)
    writer.add_head_count_kv(decoder.kv_heads)
    writer.add_key_length(decoder.head_dim)
    writer.add_value_length(decoder.head_dim)
    writer.add_rope_dimension_count(decoder.head_dim)
    writer.add_rope_freq_base(decoder.rope_theta)
    writer.add_layer_norm_rms_eps(decoder.norm_epsilon)
    writer.add_vocab_size(decoder.vocabulary)
    writer.add_tokenizer_model("none")
    for name, value in tensors(decoder, weights):
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(decoder: Decoder, weights: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields llama.cpp's names and arrays."""
    yield "token_embd.weight", weights[f"{EMBEDDING}.weight"]
    for block in range(decoder.layers):
        for theirs, ours in NAMES.items():
            for kind in ("weight", "bias"):
                value = weights.get(f"model.layers.{block}.{theirs}.{kind}")
                if value is not None:
                    yield f"blk.{block}.{ours}.{kind}", _rotary(decoder, ours, value)
    yield "output_norm.weight", weights[f"{FINAL_NORM}.weight"]
    if not decoder.tied:
        yield "output.weight", weights[f"{HEAD}.weight"]


def tensor_types(path: Path) -> tuple[dict[str, int], int]:
    """Returns how many matrices of each type a file holds, and the bytes that one token reads: every tensor except an
    embedding table that the head does not share."""
    import gguf

    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    read = [t for name, t in found.items() if not (name == "token_embd.weight" and "output.weight" in found)]
    types = Counter(t.tensor_type.name for t in found.values() if len(t.shape) > 1)
    return dict(types.most_common()), sum(int(t.n_bytes) for t in read)


def _rotary(decoder: Decoder, name: str, value: Any) -> Any:
    """Reorders rows: llama.cpp rotates neighbouring pairs of a Llama's query and key, Hugging Face element i with i +
    head_dim / 2. For Qwen2 both rotate the same ones."""
    heads = {"attn_q": decoder.heads, "attn_k": decoder.kv_heads}.get(name)
    if heads is None or decoder.family == "qwen2":
        return value
    return value.reshape(heads, 2, decoder.head_dim // 2, -1).swapaxes(1, 2).reshape(value.shape)
