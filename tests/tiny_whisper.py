"""A small random Whisper with a real tokenizer and feature extractor, clips to hear, and the CTranslate2 form of it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import soundfile
import torch
from tokenizers import AddedToken, ByteLevelBPETokenizer
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from stages.contracts import Checkpoint, Corpus
from stages.families.whisper_tokens import TIMESTAMPS
from tests import tiny

WINDOW_SECONDS = 3
RATE = 16000
SPECIAL = (
    *("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|hi|>", "<|translate|>", "<|transcribe|>"),
    *("<|startoflm|>", "<|startofprev|>", "<|nocaptions|>", "<|notimestamps|>"),
)
SUPPRESSED, SUPPRESSED_AT_BEGIN = [5, 6], [7]
SPEECH = {"language": "en", "task": "transcribe", "timestamps": False, "window": "clip"}


def save_tokenizer(folder: Path) -> WhisperTokenizer:
    """As the package has it: special tokens, but no timestamps. Returns it with timestamps."""
    folder.mkdir(parents=True, exist_ok=True)
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(tiny.sentences(50, 0), vocab_size=300, show_progress=False)
    bpe.add_special_tokens(list(SPECIAL))
    bpe.save(str(folder / "tokenizer.json"))
    tokenizer = WhisperTokenizer.from_pretrained(
        folder, pad_token="<|endoftext|>", additional_special_tokens=list(SPECIAL)
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in TIMESTAMPS])
    return tokenizer


def build(tokenizer: WhisperTokenizer, multilingual: bool = False) -> WhisperForConditionalGeneration:
    """2 + 2 layers, width 16, windows of 3 seconds."""
    torch.manual_seed(0)
    start = tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    ids = {
        "pad_token_id": tokenizer.eos_token_id, "bos_token_id": start, "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": start,
    }  # fmt: skip
    config = WhisperConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_source_positions=50 * WINDOW_SECONDS,
        max_target_positions=64, init_std=0.3, **ids,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig(
        suppress_tokens=SUPPRESSED, begin_suppress_tokens=SUPPRESSED_AT_BEGIN, is_multilingual=multilingual,
        no_timestamps_token_id=tokenizer.convert_tokens_to_ids("<|notimestamps|>"), max_initial_timestamp_index=50,
        max_length=64, return_timestamps=False, alignment_heads=[[0, 0]], **ids,
    )  # fmt: skip
    if multilingual:
        code = tokenizer.convert_tokens_to_ids
        model.generation_config.lang_to_id = {name: code(name) for name in ("<|en|>", "<|hi|>")}
        model.generation_config.task_to_id = {name: code(f"<|{name}|>") for name in ("transcribe", "translate")}
    return model


def save(folder: Path, multilingual: bool = False) -> Checkpoint:
    """A checkpoint in hub format."""
    tokenizer = save_tokenizer(folder)
    tokenizer.save_pretrained(folder)
    build(tokenizer, multilingual).save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=WINDOW_SECONDS).save_pretrained(folder)
    return Checkpoint(folder, "whisper")


def sound(seconds: float, seed: int) -> np.ndarray:
    """`audio_N`: tones that come and go."""
    draw = np.random.default_rng(seed)
    time_N = np.arange(round(seconds * RATE)) / RATE
    tones = sum(np.sin(2 * np.pi * draw.uniform(100, 4000) * time_N) for _ in range(4))
    return (0.2 * tones * np.sin(2 * np.pi * 2 * time_N) ** 2).astype(np.float32)


def save_corpus(folder: Path, seconds: dict[str, list[float]], **speech: object) -> Corpus:
    """Clips of these lengths for each split, as the data stage writes them."""
    folder.mkdir(parents=True)
    for split, lengths in seconds.items():
        (folder / "audio" / split).mkdir(parents=True)
        lines = []
        for i, (length, text) in enumerate(zip(lengths, tiny.sentences(len(lengths), 3), strict=True)):
            file = f"audio/{split}/{i:06}.flac"
            soundfile.write(folder / file, sound(length, i), RATE, subtype="PCM_16")
            short = " ".join(text.split()[: 3 + i])
            lines.append(json.dumps({"audio": file, "seconds": length, "text": short, "id": f"{split}-{i}"}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))
    write_facts(folder, {"format": "speech", "digest": "0" * 64, "speech": SPEECH | speech})
    return Corpus(folder, "corpus")


def write_facts(folder: Path, facts: dict[str, object]) -> None:
    (folder / "meta.json").write_text(json.dumps({"facts": facts}))


# ---- CTranslate2 ----

_DTYPES = {torch.int8: 1, torch.int16: 2, torch.float16: 4}


def variables(model: WhisperForConditionalGeneration) -> dict[str, torch.Tensor]:
    """The model as CTranslate2 names and fuses it, in fp16."""
    weights = {name: tensor.half() for name, tensor in model.state_dict().items()}
    found = {
        "encoder/num_heads": torch.tensor(model.config.encoder_attention_heads, dtype=torch.int16),
        "decoder/num_heads": torch.tensor(model.config.decoder_attention_heads, dtype=torch.int16),
        "decoder/activation": torch.tensor(3, dtype=torch.int8),
        "decoder/pre_norm": torch.tensor(1, dtype=torch.int8),
        "decoder/embeddings/weight": weights["model.decoder.embed_tokens.weight"],
    }
    for stack in ("encoder", "decoder"):
        base = f"model.{stack}"
        found[f"{stack}/position_encodings/encodings"] = weights[f"{base}.embed_positions.weight"]
        found |= _norm(f"{stack}/layer_norm", f"{base}.layer_norm", weights)
        for i in range(2):
            ours, theirs = f"{base}.layers.{i}", f"{stack}/layer_{i}"
            found |= _norm(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm", weights)
            found |= _fused(f"{theirs}/self_attention/linear_0", f"{ours}.self_attn", "qkv", weights)
            found |= _linear(f"{theirs}/self_attention/linear_1", f"{ours}.self_attn.out_proj", weights)
            found |= _norm(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm", weights)
            found |= _linear(f"{theirs}/ffn/linear_0", f"{ours}.fc1", weights)
            found |= _linear(f"{theirs}/ffn/linear_1", f"{ours}.fc2", weights)
            if stack == "decoder":
                found |= _norm(f"{theirs}/attention/layer_norm", f"{ours}.encoder_attn_layer_norm", weights)
                found |= _fused(f"{theirs}/attention/linear_0", f"{ours}.encoder_attn", "q", weights)
                found |= _fused(f"{theirs}/attention/linear_1", f"{ours}.encoder_attn", "kv", weights)
                found |= _linear(f"{theirs}/attention/linear_2", f"{ours}.encoder_attn.out_proj", weights)
    for conv in ("conv1", "conv2"):
        found |= _linear(f"encoder/{conv}", f"model.encoder.{conv}", weights)
    return found


def ctranslate2(found: dict[str, torch.Tensor], version: int = 6) -> bytes:
    """The bytes of `model.bin`."""
    content = struct.pack("<I", version) + _text("WhisperSpec") + struct.pack("<II", 3, len(found))
    for name, tensor in found.items():
        data = tensor.contiguous().numpy().tobytes()
        content += _text(name) + struct.pack(f"<B{tensor.dim()}I", tensor.dim(), *tensor.shape)
        content += struct.pack("<BI", _DTYPES[tensor.dtype], len(data)) + data
    return content + struct.pack("<I", 1) + _text("decoder/projection/weight") + _text("decoder/embeddings/weight")


def _text(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def _linear(theirs: str, ours: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{theirs}/{part}": weights[f"{ours}.{part}"] for part in ("weight", "bias")}


def _norm(theirs: str, ours: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{theirs}/gamma": weights[f"{ours}.weight"], f"{theirs}/beta": weights[f"{ours}.bias"]}


def _fused(theirs: str, ours: str, parts: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    rows = [weights[f"{ours}.{part}_proj.weight"] for part in parts]
    none = torch.zeros(len(rows[0]), dtype=torch.float16)
    biases = [weights.get(f"{ours}.{part}_proj.bias", none) for part in parts]
    return {f"{theirs}/weight": torch.cat(rows), f"{theirs}/bias": torch.cat(biases)}
