"""Stage `scratch`: a T5 of random weights, and a SentencePiece tokenizer trained on the training split.

What the `dense` stage makes of it is a model of its data and size, not T5-small: its label says so everywhere.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stages import families
from stages.contracts import Artifact, Corpus, Log, UserError
from stages.families import structure
from stages.scratch.spec import Scratch, ScratchOptions
from stages.tokens import rows

PAD, EOS, UNKNOWN = 0, 1, 2


def run(config: ScratchOptions, inputs: Mapping[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """`data` (Corpus of translations) -> Checkpoint. Raises UserError for settings that T5 does not have."""
    data = inputs["data"]
    assert isinstance(data, Corpus)
    assert config.family == "t5", f"no {config.family} starts from scratch"
    texts = [text for row in rows(data.split("train")) for text in (row["source"], row["target"])]
    tokenizer = train_tokenizer(texts, config.scratch.vocabulary)
    model = random_t5(config.scratch, len(tokenizer)).to(getattr(torch, config.dtype))
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    structure.save(structure.of(model, families.get(config.family)), out)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    log.facts(
        source={"scratch": config.scratch.model_dump(), "data": data.digest},
        label=config.scratch.label,
        license="none: not trained by anyone before",
        architecture=type(model).__name__,
        parameters=num_parameters,
        context=families.get(config.family).context(model),
        vocabulary=model.config.vocab_size,
        dtype=config.dtype,
    )
    return {"parameters": num_parameters, "vocabulary": len(tokenizer)}


def train_tokenizer(texts: list[str], vocabulary: int) -> Any:
    """A T5Tokenizer over a unigram model; one thread, so that the same texts give the same pieces."""
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
