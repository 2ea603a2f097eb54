"""Small random T5 and Whisper models, and examples for them to read."""

from __future__ import annotations

from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from stages import families, masks
from stages.families.encoder_decoder import EncoderDecoder, Example, ExampleRows
from stages.families.whisper import SpeechRows
from stages.families.whisper_windows import any_window
from tests import tiny
from tests import tiny_encoder_decoders as tiny_models

KINDS = ("t5", "t5_gated", "mt5", "whisper")
MELS, POSITIONS, TARGET_POSITIONS = 8, 50, 32
"""A Whisper whose windows are a second long: 100 frames."""
START, NO_TIMESTAMPS, EOS = 5, 6, 0
T5: dict[str, Any] = {
    "vocab_size": tiny.VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
    "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "dropout_rate": 0.0, "initializer_factor": 1.0,
}  # fmt: skip


def build(kind: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    if kind == "whisper":
        return _whisper()
    if kind == "mt5":
        return MT5ForConditionalGeneration(MT5Config(**T5)).eval()
    if kind == "t5":
        return t5()
    assert kind == "t5_gated", kind
    # as T5 v1.1 and Flan-T5 are: gated, with a head of its own
    gated = T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False, num_decoder_layers=1)
    model = T5ForConditionalGeneration(gated).eval()
    model.lm_head.weight = torch.nn.Parameter(torch.randn(tiny.VOCABULARY, 32))
    return model


def t5(**settings: Any) -> Any:
    """Of the seed that torch has."""
    return T5ForConditionalGeneration(T5Config(**T5 | settings)).eval()


def _whisper() -> Any:
    config = WhisperConfig(
        vocab_size=tiny.VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=MELS,
        max_target_positions=TARGET_POSITIONS, max_source_positions=POSITIONS, decoder_start_token_id=START,
        eos_token_id=EOS, pad_token_id=EOS, bos_token_id=EOS, init_std=0.3,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=START, eos_token_id=EOS, pad_token_id=EOS, no_timestamps_token_id=NO_TIMESTAMPS
    )
    return any_window(model).eval()


def pruned(kind: str, sparsity: float = 0.6) -> Any:
    """With zeros at random places of its prunable linears."""
    model = build(kind)
    masks.apply_(model, zeros(kind, model, sparsity))
    return model


def zeros(kind: str, model: Any, sparsity: float = 0.6) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    prunable = families.get(family(kind)).prunable(model)
    return {name: torch.rand(linear.weight.shape, generator=draw) < sparsity for name, linear in prunable.items()}


def family(kind: str) -> str:
    return "whisper" if kind == "whisper" else "t5"


def read(kind: str, rows: int = 2) -> dict[str, Tensor]:
    """What the encoder is given, as arguments of the model's forward: rows of which the last is padded, of T5."""
    draw = torch.Generator().manual_seed(1)
    if kind == "whisper":
        return {"input_features": torch.randn(rows, MELS, 2 * POSITIONS, generator=draw)}
    ids_BS = torch.randint(2, tiny.VOCABULARY, (rows, 9), generator=draw)
    mask_BS = torch.ones_like(ids_BS)
    if rows > 1:
        ids_BS[-1, 6:], mask_BS[-1, 6:] = 0, 0
    return {"input_ids": ids_BS, "attention_mask": mask_BS}


def prompt(kind: str) -> list[int]:
    return [START, NO_TIMESTAMPS] if kind == "whisper" else [0]


SOURCES, TARGETS = (7, 3, 5, 2), (4, 6, 2, 5)
"""Of the examples: tokens of T5's sources, or a tenth of Whisper's frames; labels, the last of them eos."""


def rows(kind: str, model: Any, window: str = "clip") -> ExampleRows:
    """Four examples of uneven lengths; `window`: of Whisper's clips."""
    adapter = families.get(family(kind))
    assert isinstance(adapter, EncoderDecoder)
    features = adapter.columns()
    held = datasets.Dataset.from_list([_example(kind, i) for i in range(len(SOURCES))], features=features)
    if kind == "whisper":
        return SpeechRows(adapter, held, TARGET_POSITIONS, START, model.config, window)
    return ExampleRows(adapter, held, TARGET_POSITIONS, 0, model.config)


def _example(kind: str, i: int) -> Example:
    draw = torch.Generator().manual_seed(i)
    source, target = SOURCES[i], TARGETS[i]
    ids = torch.randint(10, 100, (source + target - 2,), generator=draw).tolist()
    eos = EOS if kind == "whisper" else 1
    example = {"labels": [*ids[: target - 1], eos], "size": source + target, "reference": "words", "id": f"id-{i}"}
    if kind != "whisper":
        return example | {"input_ids": [*ids[target - 1 :], eos]}
    frames = 10 * source
    heard = {"frames": frames, "size": frames + target, "piece": 0, "seconds": frames / 100}
    return example | heard | {"input_features": torch.randn(MELS * frames, generator=draw).tolist()}


def family_of(kind: str) -> Any:
    return families.get(tiny_models.family(kind))


def symmetric(H_II: Tensor) -> Tensor:
    return H_II.triu() + H_II.triu(1).T
