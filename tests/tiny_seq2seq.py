"""Small random encoder-decoders of text beside T5, each with a tokenizer of its own kind, and pairs of sentences."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    BartTokenizer,
    M2M100Tokenizer,
    MarianTokenizer,
    MBart50Tokenizer,
    MBartTokenizer,
    NllbTokenizer,
    PreTrainedTokenizerFast,
)

from stages.contracts import Corpus
from tests import tiny, tiny_whisper

LANGUAGES = {"mbart": ("en_XX", "de_DE"), "mbart50": ("en_XX", "de_DE"), "nllb": ("eng_Latn", "deu_Latn"),
             "m2m_100": ("en", "de"), "marian_multilingual": ("", "deu")}  # fmt: skip
"""Source and target of those kinds whose tokenizer marks them."""
MODEL_TYPES = {"mbart50": "mbart", "nllb": "m2m_100", "marian_multilingual": "marian"}
KINDS = (
    *("bart", "mbart", "mbart50", "marian", "marian_multilingual", "m2m_100", "nllb", "pegasus", "blenderbot"),
    *("blenderbot-small", "mvp", "plbart", "umt5"),
)
CLASSES = tuple(kind for kind in KINDS if kind not in MODEL_TYPES)
"""One kind of each model class."""
CONTEXT = 30
"""No multiple of what batches are padded to."""
SIZES: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": CONTEXT, "dropout": 0.0, "init_std": 0.2,
}  # fmt: skip
UMT5: dict[str, Any] = {
    "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "dropout_rate": 0.0,
}  # fmt: skip


def model_type(kind: str) -> str:
    return MODEL_TYPES.get(kind, kind)


def build(kind: str, tokenizer: Any, **settings: Any) -> Any:
    """In eval mode. Its logits have a bias, where the class has one, and its norms and biases are no ones and zeros."""
    torch.manual_seed(0)
    name = model_type(kind)
    # M2M100 numbers its languages behind the vocabulary
    largest = max(getattr(tokenizer, "lang_code_to_id", {}).values(), default=0)
    tokens = {"vocab_size": max(len(tokenizer), largest + 1), "pad_token_id": tokenizer.pad_token_id,
              "eos_token_id": tokenizer.eos_token_id}  # fmt: skip
    starts = {"mbart": None, "marian": tokenizer.pad_token_id, "pegasus": tokenizer.pad_token_id,
              "umt5": tokenizer.pad_token_id}  # fmt: skip
    start = starts.get(name, tokenizer.eos_token_id) if kind != "mbart50" else tokenizer.eos_token_id
    sizes = UMT5 if name == "umt5" else SIZES
    asked = {**sizes, **tokens, "decoder_start_token_id": start, "forced_eos_token_id": None, **settings}
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(name, **asked)).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=float(parameter_name.endswith("norm.weight")), std=0.2)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_()
    return model


def save(kind: str, folder: Path, **settings: Any) -> Path:
    """A checkpoint in hub format."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(kind, folder)
    tokenizer.save_pretrained(folder)
    build(kind, tokenizer, **settings).save_pretrained(folder)
    return folder


def save_corpus(folder: Path, kind: str, prompt: str = "") -> Corpus:
    """Pairs, with the languages that the tokenizer of this kind needs."""
    folder.mkdir(parents=True)
    for seed, (split, count) in enumerate((("train", 12), ("validation", 4), ("test", 4))):
        rows = [
            {"id": f"{split}-{i}", "source": prompt + " ".join(text.split()[: 2 + i % 5]),
             "target": " ".join(text.split()[1 : 3 + i % 3])}
            for i, text in enumerate(tiny.sentences(count, seed))
        ]  # fmt: skip
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source, target = LANGUAGES.get(kind, ("", ""))
    facts = {"format": "translation", "digest": "pairs", "languages": {"source": source, "target": target}}
    tiny_whisper.write_facts(folder, facts)
    return Corpus(folder, "corpus")


# ---- tokenizers ----


def _tokenizer(kind: str, folder: Path) -> Any:
    words = sorted({f"▁{word}" for word in (*tiny.WORDS, *(f"{word}." for word in tiny.WORDS))})
    if kind in ("marian", "marian_multilingual"):
        _sentencepiece(folder, ("source.spm", "target.spm"))
        marks = [">>deu<<", ">>fra<<"] if kind == "marian_multilingual" else []
        _vocabulary(["</s>", "<unk>", *_pieces(folder / "source.spm"), *marks, "<pad>"], folder / "vocab.json")
        return MarianTokenizer(*(str(folder / name) for name in ("source.spm", "target.spm", "vocab.json")))
    if kind == "m2m_100":
        _sentencepiece(folder, ("sentencepiece.bpe.model",))
        pieces = _pieces(folder / "sentencepiece.bpe.model")
        _vocabulary(["<s>", "<pad>", "</s>", "<unk>", *pieces], folder / "vocab.json")
        return M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "sentencepiece.bpe.model"))
    if kind == "nllb":
        letters = ["▁", *sorted({letter for word in words for letter in word[1:]})]
        vocab = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *letters])}
        return NllbTokenizer(vocab=vocab, merges=[], extra_special_tokens=["eng_Latn", "deu_Latn"])
    if kind in ("mbart", "mbart50"):
        special = ["<s>", "<pad>", "</s>", "<unk>"]
        languages = ["en_XX", "de_DE"]
        if kind == "mbart":
            return MBartTokenizer(vocab=[(t, 0.0) for t in (*special, "▁", *words, *languages, "<mask>")])
        return MBart50Tokenizer(vocab=[(t, 0.0) for t in (*special, "▁", *words)])
    if kind in ("bart", "mvp"):
        letters = sorted({letter for word in words for letter in word[1:]})
        vocab = {t: i for i, t in enumerate(["<s>", "<pad>", "</s>", "<unk>", "Ġ", *letters, "<mask>"])}
        return BartTokenizer(vocab=vocab, merges=[])
    tokenizer = tiny.save_tokenizer(folder)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    return tokenizer


def _sentencepiece(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        with (folder / name).open("wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(tiny.sentences(50, 0)), model_writer=file, vocab_size=60, num_threads=1,
                minloglevel=2, hard_vocab_limit=False,
            )  # fmt: skip


def _pieces(model: Path) -> list[str]:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    pieces = [processor.id_to_piece(i) for i in range(len(processor))]
    return [piece for piece in pieces if piece not in ("<s>", "</s>", "<unk>")]


def _vocabulary(tokens: list[str], path: Path) -> None:
    path.write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
