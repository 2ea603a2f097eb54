"""The decoder that the peers run: RMSNorm, rotary positions, grouped queries, SiLU-gated MLP; Llama, Mistral, Qwen2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import EngineError

FAMILIES = ("llama", "mistral", "qwen2")
EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens", "model.norm", "lm_head"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Decoder:
    """Sizes of a model; its weights are a dict of numpy fp32 arrays under their Hugging Face names."""

    family: str
    layers: int
    width: int
    mlp_width: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    """Tokens up to which attention is full: the model's longest sequence, or its sliding window."""
    rope_theta: float
    norm_epsilon: float
    tied: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Decoder:
        """Builds a decoder from a Hugging Face config as a dict. Raises EngineError for an architecture that the peers
        do not run."""
        family = config["model_type"]
        if family not in FAMILIES:
            raise EngineError(f"model type {family!r}: peers are given {', '.join(FAMILIES)} only")
        rope = config["rope_parameters"]
        wrong = [
            f"{name} {found!r}"
            for name, found, known in (
                ("hidden_act", config["hidden_act"], "silu"),
                ("rope_type", rope.get("rope_type", "default"), "default"),
                ("attention_bias", config.get("attention_bias", False), False),
                ("mlp_bias", config.get("mlp_bias", False), False),
            )
            if found != known
        ]
        if wrong:
            raise EngineError(f"{family} with {', '.join(wrong)}: peers are given the plain architecture only")
        heads = config["num_attention_heads"]
        return cls(
            family=family,
            layers=config["num_hidden_layers"],
            width=config["hidden_size"],
            mlp_width=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocabulary=config["vocab_size"],
            context=min(config["max_position_embeddings"], config.get("sliding_window") or 1 << 30),
            rope_theta=rope["rope_theta"],
            norm_epsilon=config["rms_norm_eps"],
            tied=config["tie_word_embeddings"],
        )

    @property
    def head(self) -> str:
        """Returns the module whose weight computes the logits."""
        return EMBEDDING if self.tied else HEAD

    def check_length(self, tokens: int) -> None:
        """Raises EngineError for a sequence beyond full attention."""
        if tokens > self.context:
            raise EngineError(f"{tokens} tokens, but attention is full up to {self.context} only: ask for fewer")
