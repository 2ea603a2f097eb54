"""Reads the texts that a tokenizer is trained on."""

from __future__ import annotations

import hashlib

from stages import json_lines
from stages.contracts import Corpus, Log, UserError
from stages.corpus.documents import Place, batches, open_reader
from stages.corpus.mixture import is_validation, next_source
from stages.corpus.spec import CorpusOptions
from stages.data.formats import rows_of
from stages.tokens import texts

BATCH_CHARACTERS = 1 << 16


def texts_of_data(data: Corpus) -> list[str]:
    """Yields all texts of the training split: the sources and the targets of pairs."""
    if rows_of(data) == "pairs":
        return [text for row in json_lines.read(data.split("train")) for text in (row["source"], row["target"])]
    return texts(data, "train")


def texts_of_corpus(config: CorpusOptions, num_bytes: int, log: Log) -> tuple[list[str], str]:
    """Returns training documents from the beginning of each source, of the given bytes in all, in the shares of the
    weights; and the digest of these texts. Validation documents are left out, as the corpus leaves them out."""
    readers = {name: open_reader(name, source, log) for name, source in config.sources.items()}
    feeds = {name: (text for batch in batches(it, Place(), BATCH_CHARACTERS) for text in batch)
             for name, it in readers.items()}  # fmt: skip
    weights = config.weights or dict.fromkeys(feeds, 1.0)
    taken = dict.fromkeys(feeds, 0)
    found: list[str] = []
    total, digest = 0, hashlib.sha256()
    while taken and total < num_bytes:
        name = next_source(taken, weights, ())
        assert name is not None
        text = next(feeds[name], None)
        if text is None:  # the other sources fill the rest
            del taken[name]
            continue
        if text and not is_validation(text, config.validation_fraction):
            content = text.encode("utf-8", errors="replace")
            found.append(text)
            digest.update(content)
            taken[name] += len(content)
            total += len(content)
    if not found:
        raise UserError("its sources hold no text to train a tokenizer on", "corpus.sources")
    return found, digest.hexdigest()
