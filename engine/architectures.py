"""Which models the engine takes: decoder-only language models, and encoder-decoders that read text or speech."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq
from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES


def auto_class(config: Any) -> Any:
    """The automatic class of transformers that knows the architecture of this configuration, if any does."""
    if reads_speech(config):
        return AutoModelForSpeechSeq2Seq
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def reads_speech(config: Any) -> bool:
    return bool(config.is_encoder_decoder) and config.model_type in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES
