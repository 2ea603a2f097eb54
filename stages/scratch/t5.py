"""Makes a T5 with random weights, and a SentencePiece tokenizer."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import torch

from stages.contracts import UserError
from stages.scratch.spec import Scratch

PAD, EOS, UNKNOWN = 0, 1, 2


def make(config: Scratch, texts: list[str]) -> tuple[Any, Any]:
    """Returns the model. Raises UserError for settings that T5 does not have."""
    tokenizer = train_tokenizer(texts, config.vocabulary)
    return random_t5(config, len(tokenizer)), tokenizer


def train_tokenizer(texts: list[str], vocabulary: int) -> Any:
    """Trains a T5Tokenizer over a unigram model; in one thread, so that the same texts give the same pieces."""
    import sentencepiece
    from transformers import T5Tokenizer

    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=written, model_type="unigram", vocab_size=vocabulary,
            pad_id=PAD, eos_id=EOS, unk_id=UNKNOWN, bos_id=-1, character_coverage=1.0, num_threads=1,
            minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise UserError(
            f"SentencePiece cannot make {vocabulary} pieces of these texts: {error}", "model.scratch.vocabulary"
        ) from None
    with tempfile.TemporaryDirectory(prefix="squarehead-") as folder:
        (Path(folder) / "spiece.model").write_bytes(written.getvalue())
        return T5Tokenizer.from_pretrained(folder, extra_ids=0)


def random_t5(config: Scratch, vocabulary: int) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    known = T5Config().to_dict()
    if odd := sorted(config.settings.keys() - known.keys()):
        raise UserError(f"T5's configuration has no {odd[0]!r}", "model.scratch.settings")
    if not config.settings.get("tie_word_embeddings", True):
        raise UserError("transformers ties the embeddings of every new T5", "model.scratch.settings")
    settings = T5Config(
        **config.settings, vocab_size=vocabulary, pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return T5ForConditionalGeneration(settings).eval()
