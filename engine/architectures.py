"""What is known of architectures by name, in one place: for the engine, and for the stages that ask it.

- Which automatic class of transformers loads a configuration: `auto_class`.
- Which sibling linears read the same input: `SHARED_INPUTS`. The engine asks when it converts or loads a model, which
  must not run then; a wrong answer costs time only, since a product is shared for the same tensor and no other.
  Pruning (Hessians of a block) and quantization (SmoothQuant's scales) must not be wrong, and run the model anyway:
  they observe which linears are given the same tensor, whatever their names (`Collector`, `wiring` of the stages).
- Which linears of a decoder read the encoder's states: `reads_encoder`. A pass cannot tell: such a linear sees a tensor
  like any other.
- How many positions a model has: `context`.

What the compiled decoding step runs for a model type stands in `engine.layouts`.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq
from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES

from engine.errors import EngineError

SHARED_INPUTS: tuple[tuple[str, ...], ...] = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("q", "k", "v"),
    ("wi_0", "wi_1"),
)
"""Names of siblings that read the same input; in cross-attention the first of three, the query, reads another."""
CROSS_ATTENTION = ("encoder_attn", "EncDecAttention")
KEYS_AND_VALUES = ("k_proj", "v_proj", "k", "v")
CONTEXT_KEYS = ("max_position_embeddings", "max_target_positions", "max_seq_len", "n_positions", "seq_length")
"""Keys of configurations for the longest sequence. MPT calls it max_seq_len; with ALiBi that is a length of training
and not a limit, but the only one stated."""
RELATIVE_POSITIONS = ("t5", "mt5", "umt5")
"""Model types with unlimited positions, whatever length of training their configurations state."""


def auto_class(config: Any) -> Any:
    """Returns the automatic class of transformers that knows the architecture of this configuration, if any does."""
    if reads_speech(config):
        return AutoModelForSpeechSeq2Seq
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def reads_speech(config: Any) -> bool:
    return bool(config.is_encoder_decoder) and config.model_type in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES


def is_cross_attention(module: str) -> bool:
    """Returns whether the module of this dotted name attends to the encoder's states."""
    return module.rpartition(".")[2] in CROSS_ATTENTION


def reads_encoder(linear: str) -> bool:
    """Returns whether the linear of this dotted name, in a decoder, computes keys or values of the encoder's states."""
    parent, _, name = linear.rpartition(".")
    return is_cross_attention(parent) and name in KEYS_AND_VALUES


def shared_inputs(parent: str) -> tuple[tuple[str, ...], ...]:
    """Returns names of linears that read the same input, in the module of this dotted name."""
    return tuple(names[1:] for names in SHARED_INPUTS) if is_cross_attention(parent) else SHARED_INPUTS


def context(config: Any) -> int | None:
    """Returns the longest sequence in tokens, of the decoder if there is one; None if positions are unlimited."""
    if config.model_type in RELATIVE_POSITIONS:
        return None
    stated = [getattr(config, key, None) for key in CONTEXT_KEYS]
    # XLNet says -1: no limit
    return next((int(length) for length in stated if length and length > 0), None)


def check_length(config: Any, length: int) -> None:
    """Raises EngineError for a sequence longer than the model's context."""
    limit = context(config)
    if limit and length > limit:
        raise EngineError(f"{length} tokens do not fit the model's context of {limit}; ask for fewer")
