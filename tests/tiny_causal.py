"""Small random language models of many classes, with norms that are not all ones."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tests import tiny

SIZES: dict[str, Any] = {
    "vocab_size": tiny.VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 0, "bos_token_id": 0,
}  # fmt: skip
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2}
MAMBA = {name: SIZES[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "pad_token_id")}
OPT: dict[str, Any] = {**SIZES, "ffn_dim": 64, "dropout": 0.0}
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama_grouped": ("Llama", GROUPED),
    "gemma": ("Gemma", {**GROUPED, "head_dim": 8}),
    "gemma2": ("Gemma2", {**GROUPED, "head_dim": 8}),
    "gemma3": ("Gemma3", {**GROUPED, "head_dim": 8}),
    "gemma3n": (
        "Gemma3n",
        {
            **GROUPED, "head_dim": 8, "num_hidden_layers": 4, "intermediate_size": [64] * 4, "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": tiny.VOCABULARY, "hidden_size_per_layer_input": 8, "altup_num_inputs": 2,
            "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 4,
        },
    ),
    "olmo2": ("Olmo2", SIZES),
    "cohere": ("Cohere", GROUPED),
    "phi3": ("Phi3", GROUPED),
    "falcon": ("Falcon", {name: value for name, value in SIZES.items() if name != "intermediate_size"}),
    "opt": ("OPT", {**OPT, "word_embed_proj_dim": 32}),
    "opt_350m": ("OPT", {**OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "mixtral": ("Mixtral", {**GROUPED, "num_local_experts": 4}),
    "qwen2_moe": (
        "Qwen2Moe",
        {
            **GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "deepseek_v2": (
        "DeepseekV2",
        {
            **SIZES, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
            "moe_intermediate_size": 16, "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16,
            "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
        },
    ),
    "gpt2": ("GPT2", {"vocab_size": tiny.VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "mamba": ("Mamba", {**MAMBA, "state_size": 8}),
    "falcon_mamba": ("FalconMamba", {**MAMBA, "state_size": 8}),
    "rwkv": (
        "Rwkv",
        {
            "vocab_size": tiny.VOCABULARY, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2,
            "context_length": 64, "rescale_every": 1,
        },
    ),
}  # fmt: skip
"""Kind -> transformers' name of the class, and the configuration."""
CONFIGS = {"Gemma3": "Gemma3TextConfig", "Gemma3n": "Gemma3nTextConfig"}
MODELS = {"GPT2": "GPT2LMHeadModel"}
"""Of those whose classes have other names."""


def build(kind: str, seed: int = 0) -> Any:
    name, sizes = CLASSES[kind]
    torch.manual_seed(seed)
    config = getattr(transformers, CONFIGS.get(name, f"{name}Config"))(**sizes)
    model = getattr(transformers, MODELS.get(name, f"{name}ForCausalLM"))(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() == 1 and "norm" in parameter_name:
                parameter.add_(0.5 * torch.rand_like(parameter))
    return model
