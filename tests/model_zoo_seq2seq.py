"""Every model type of transformers' mappings of sequence-to-sequence models, and what becomes of it here."""

from __future__ import annotations

from transformers.models.auto import modeling_auto

RIGHT = "right"
MAPPINGS = (
    modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)
ZOO: dict[str, tuple[str, str]] = {
    "bart": ("seq2seq", RIGHT),
    "blenderbot": ("seq2seq", RIGHT),
    "blenderbot-small": ("seq2seq", RIGHT),
    "m2m_100": ("seq2seq", RIGHT),
    "marian": ("seq2seq", RIGHT),
    "mbart": ("seq2seq", RIGHT),
    "mvp": ("seq2seq", RIGHT),
    "pegasus": ("seq2seq", RIGHT),
    "plbart": ("seq2seq", RIGHT),
    "umt5": ("seq2seq", RIGHT),
    "t5": ("t5", RIGHT),
    "mt5": ("t5", RIGHT),
    "whisper": ("whisper", RIGHT),
    "bigbird_pegasus": ("seq2seq", "attends in windows"),
    "led": ("seq2seq", "attends in windows"),
    "longt5": ("seq2seq", "attends in windows"),
    "pegasus_x": ("seq2seq", "attends in windows"),
    "encoder-decoder": ("seq2seq", "puts two models of other types together"),
    "fsmt": ("seq2seq", "has two vocabularies"),
    "nllb-moe": ("seq2seq", "keeps experts in its blocks"),
    "switch_transformers": ("t5", "keeps experts in its blocks"),
    "prophetnet": ("seq2seq", "predicts several tokens at each position"),
    "t5gemma": ("t5", "caps its logits"),
    "t5gemma2": ("t5", "caps its logits"),
    "canary": ("whisper", "reads speech"),
    "cohere_asr": ("whisper", "reads speech"),
    "dia": ("whisper", "writes speech"),
    "moonshine": ("whisper", "reads speech"),
    "moonshine_streaming": ("whisper", "reads speech"),
    "pop2piano": ("whisper", "reads music"),
    "seamless_m4t": ("seq2seq", "reads speech"),
    "seamless_m4t_v2": ("seq2seq", "reads speech"),
    "speech-encoder-decoder": ("whisper", "reads speech"),
    "speech_to_text": ("whisper", "reads speech"),
    "speecht5": ("whisper", "reads speech"),
}
"""Model type -> the family that a user would try, and `RIGHT`, or what the refusal says. Types of the mappings that are
no encoder-decoders (decoders that read audio, as Voxtral) are not here; no family of this table takes them."""


def model_types() -> set[str]:
    return {model_type for mapping in MAPPINGS for model_type in mapping}
