"""Sizes that make a model of any architecture small: by the usual names of sizes, and for some types their own."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig

from tests import tiny_classes

COMMON: dict[str, Any] = {
    **tiny_classes.LLAMA_LIKE, "d_model": 32, "n_embd": 32, "emb_dim": 32, "ffn_dim": 64, "num_layers": 2,
    "n_layers": 2, "n_layer": 2, "depth": 2, "num_heads": 4, "n_heads": 4, "n_head": 4, "head_dim": 8,
    "n_positions": 320, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "num_experts_per_token": 2, "moe_k": 2, "moe_topk": 2, "moe_intermediate_size": 16,
    "expert_ffn_hidden_size": 16, "shared_expert_intermediate_size": 32, "shared_intermediate_size": 32,
    "state_size": 8, "word_embed_proj_dim": 32, "kv_lora_rank": 8, "q_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "n_group": 1, "topk_group": 1, "num_expert_group": 1,
    "first_k_dense_replace": 1, "max_seq_len": 320, "ffn_hidden_size": 64, "rotary_dim": 4, "expansion_ratio": 2,
    "attention_hidden_size": 32, "num_buckets": 32,
    "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_layers": 2,
    "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "num_encoder_layers": 2, "num_encoder_attention_heads": 4,
    "num_decoder_layers": 2, "num_decoder_attention_heads": 4,
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_d_ssm": 64, "mamba_n_groups": 1,
    "mamba_chunk_size": 16, "linear_head_dim": 8, "linear_num_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "chunk_size": 16,
    "index_n_heads": 2, "index_head_dim": 16, "index_topk": 4, "vocab_size_per_layer_input": 320,
    "hidden_size_per_layer_input": 8, "image_size": 32, "patch_size": 8, "out_hidden_size": 32, "is_decoder": True,
}  # fmt: skip
"""Each configuration takes those that it has."""
LARGEST = 3_000_000
"""Parameters of a model that counts as small."""
MULTI_HEAD_LATENT = {"num_key_value_heads": 4}
"""Of attention with a latent for all keys and values (`kv_lora_rank`)."""
OF_TYPE: dict[str, dict[str, Any]] = {
    **tiny_classes.MIXTURES,
    "axk1": {"num_key_value_heads": 4},
    "dots1": {"n_shared_experts": 1, "num_experts_per_tok": 2, "num_key_value_heads": 4},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
             "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "reformer": {"attn_layers": ["local", "lsh"], "attention_head_size": 8, "feed_forward_size": 64, "hash_seed": 0,
                 "axial_pos_shape": [16, 20], "axial_pos_embds_dim": [16, 16], "local_attn_chunk_length": 8,
                 "lsh_attn_chunk_length": 8, "num_buckets": 4},
    "roc_bert": {"pronunciation_embed_dim": 8, "shape_embed_dim": 8, "shape_vocab_size": 320,
                 "pronunciation_vocab_size": 320},
    "xlm": {"causal": True},
    "xlnet": {"attn_type": "uni"},
    "xmod": {"default_language": "en_XX"},
    "deepseek_v4": {"hc_sinkhorn_iters": 2, "hc_mult": 2, "o_groups": 2, "o_lora_rank": 8, "num_key_value_heads": 1},
    "blt": {"encoder_hash_byte_group_vocab": 64, "encoder_hash_byte_group_size": [3]},
    "phi4_multimodal_audio": {"num_blocks": 1, "ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32,
                              "nemo_conv_channels": 8, "bias_max_distance": 16, "time_reduction": 4},
    "minicpm3": {"dim_model_base": 32},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "zamba": {"num_hidden_layers": 4, "attention_hidden_size": 64, "attention_head_dim": 16, "mamba_dt_rank": 4,
              "layers_block_type": ["mamba", "hybrid"] * 2, "num_key_value_heads": 4},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "n_mamba_heads": 4,
               "num_key_value_heads": 4, "adapter_rank": 4, "attention_hidden_size": 64, "attention_head_dim": 16},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
    "gemma3n_text": {"num_hidden_layers": 4, "intermediate_size": [64] * 4, "num_kv_shared_layers": 2,
                     "altup_num_inputs": 2, "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 4},
    "gemma4_text": {"layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0,
                    "per_layer_config": {}},
    "longcat_flash": {"zero_expert_num": 2, "num_key_value_heads": 4},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"]},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"],
                            "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                                                "full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dots3_note_text": {"num_key_value_heads": 4, "head_dim": 16, "per_layer_config": {},
                        "shared_experts_intermediate_size": 16,
                        "layer_types": ["indexed_attention", "sliding_attention"],
                        "mlp_layer_types": ["dense", "sparse"]},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
}  # fmt: skip
"""By model_type, of configurations inside others too: what the common names leave open or get wrong."""


def build(model_type: str) -> Any:
    """A small random model of the causal mapping, in eval mode. Raises whatever its classes do where that is not to be
    had."""
    config = small(model_type)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if count > LARGEST:
        raise ValueError(f"{count:,} parameters by the usual names of sizes")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def small(model_type: str) -> PretrainedConfig:
    """The configuration of a small model. Raises whatever its class does of sizes that do not fit."""
    kind: Any = CONFIG_MAPPING[model_type]
    config: PretrainedConfig = kind(**_settings(model_type, kind()))
    return config


def _settings(model_type: str, default: PretrainedConfig) -> dict[str, Any]:
    known = default.to_dict()
    settings = {name: value for name, value in COMMON.items() if name in known}
    if "kv_lora_rank" in known and "num_key_value_heads" in known:
        settings |= MULTI_HEAD_LATENT
    for name in default.sub_configs:
        inside = getattr(default, name, None)
        if isinstance(inside, PretrainedConfig) and inside.model_type:
            settings[name] = {"model_type": inside.model_type, **_settings(inside.model_type, inside)}
    return settings | OF_TYPE.get(model_type, {})
