"""Stage `corpus`: packs text for pretraining, once, into files that training reads in place.

Documents are tokenised as they come and written to shards. A killed run resumes after its last finished shard and gives
the same bytes as an uninterrupted one: the source of the next document follows from counts alone.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from stages import families
from stages.contracts import Artifact, Checkpoint, Log, Stopped, UserError
from stages.corpus import shards
from stages.corpus.documents import open_reader
from stages.corpus.encoding import Encoder, Ids, parallel
from stages.corpus.feed import Feed
from stages.corpus.mixture import is_done, is_validation, next_source
from stages.corpus.shards import Progress, Shard
from stages.corpus.spec import CorpusOptions
from stages.sources.identity import identity

DOCUMENTS_PER_LOOK = 1000
"""Documents between two updates of the bar and checks for a request to stop."""
CHUNK_BYTES = 1 << 20


def run(config: CorpusOptions, inputs: Mapping[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Packs the corpus. Raises UserError for a source that cannot be read, and Stopped when `log.should_stop`; finished
    shards are kept either way.

    Input: `model` (Checkpoint, for its tokenizer). Output: PackedCorpus.
    """
    model = inputs["model"]
    assert isinstance(model, Checkpoint)
    encoder = Encoder(families.of(model.path).tokenizer(model.path))
    packing = _Packing(config, encoder, log)
    with parallel(torch.get_num_threads()):
        packing.run()
    return packing.publish(out)


class _Packing:
    """A corpus that is being packed, between two documents."""

    def __init__(self, config: CorpusOptions, encoder: Encoder, log: Log) -> None:
        self.config, self.encoder, self.log = config, encoder, log
        self.count, self.progress = shards.restore(log.resume, Progress.start(config.sources), log)
        if self.count:
            log.note(f"resumes after {self.count} finished shards ({sum(self.progress.tokens.values()):,} tokens)")
        self.readers = {name: open_reader(name, source, log) for name, source in config.sources.items()}
        self.feeds = {name: Feed(reader, encoder, self.progress.places[name]) for name, reader in self.readers.items()}
        self.shard = Shard()
        self.began, self.resumed_at = time.perf_counter(), sum(self.progress.tokens.values())

    def run(self) -> None:
        """Packs what is left."""
        config, tokens = self.config, self.progress.tokens
        total, unit = (config.tokens, "token") if config.tokens else (len(tokens), "source")
        with self.log.bar("pack", total=total, unit=unit) as bar:
            shown = documents = 0
            while not is_done(sum(tokens.values()), config.tokens, self._ended(), tokens):
                documents += 1
                if documents % DOCUMENTS_PER_LOOK == 0:
                    bar.advance(self._done() - shown)
                    shown = self._done()
                    if self.log.should_stop:
                        raise Stopped(
                            f"stopped after {self.count} finished shards; the same command resumes after them"
                        )
                name = next_source(tokens, config.weights, self._ended())
                assert name is not None
                self._take(name)
                if self.shard.train.size >= config.shard_tokens:
                    self._close_shard()
            bar.advance(total - shown)
        if self.shard.train.documents or self.shard.validation:
            self._close_shard()

    def _done(self) -> int:
        """Returns the progress for the bar: tokens, or sources that were read to their end."""
        return sum(self.progress.tokens.values()) if self.config.tokens else len(self._ended())

    def _ended(self) -> set[str]:
        return {name for name, feed in self.feeds.items() if feed.place.rounds}

    def _take(self, name: str) -> None:
        """Moves one document of a source to training, to validation, or nowhere."""
        found = self.feeds[name].take()
        if found is None:
            self._check_round(name)
            return
        text, ids = found
        progress = self.progress
        if not len(ids):
            progress.empty += 1
        elif is_validation(text, self.config.validation_fraction):
            self._keep_for_validation(name, ids)
        else:
            if self.config.tokens:
                ids = ids[: self.config.tokens - sum(progress.tokens.values())]
            self.shard.train.add(ids)
            progress.tokens[name] += len(ids)
            progress.documents[name] += 1

    def _keep_for_validation(self, name: str, ids: Ids) -> None:
        progress = self.progress
        # later rounds of a source have no further validation documents
        if progress.validation_tokens[name] < self.config.validation_tokens and not self.feeds[name].place.rounds:
            self.shard.validation.setdefault(name, shards.Part()).add(ids)
            progress.validation_tokens[name] += len(ids)
            progress.validation_documents[name] += 1

    def _check_round(self, name: str) -> None:
        """Checks a source at the end of a round. Raises UserError for one that yields nothing, however often it is
        read."""
        if not self.progress.tokens[name]:
            raise UserError(
                f"{self.config.sources[name].path} holds no text to train on", f"corpus.sources.{name}.path"
            )

    def _close_shard(self) -> None:
        self.progress.places = {name: feed.place for name, feed in self.feeds.items()}
        self.shard.save(self.log.resume, self.count, self.progress)
        self.shard, self.count = Shard(), self.count + 1

    def publish(self, out: Path) -> dict[str, float]:
        """Fills `out` with the finished shards; returns the metrics."""
        config, progress, width = self.config, self.progress, self.encoder.dtype().itemsize
        if lacking := [name for name, count in progress.validation_documents.items() if not count]:
            raise UserError(
                f"none of the documents of {lacking[0]} was chosen for validation; raise the fraction",
                "corpus.validation_fraction",
            )
        train = shards.publish_train(self.log.resume, self.count, out)
        validation = {
            name: shards.publish_validation(self.log.resume, self.count, name, self.encoder.dtype, out)
            for name in config.sources
        }
        index = {
            "dtype": self.encoder.dtype.__name__,
            "train": [file.stat().st_size // width for file in train],
            "validation": {name: file.stat().st_size // width for name, file in validation.items()},
        }
        (out / "index.json").write_text(json.dumps(index), encoding="utf-8")
        rounds = {name: feed.place.rounds for name, feed in self.feeds.items()}
        for name, feed in self.feeds.items():
            if feed.place.rounds and feed.place.documents:
                self.log.note(f"{name} ended and was read again: {feed.place.rounds} times whole, and in part")
        if progress.empty:
            self.log.note(f"left out {progress.empty} documents without text")
        total = sum(progress.tokens.values())
        rate = (total - self.resumed_at) / (time.perf_counter() - self.began)
        self.log.facts(
            format="tokens",
            digest=_digest({"train": train, **{f"validation {name}": [file] for name, file in validation.items()}}),
            sources={
                name: {
                    **identity(source.path, source.revision, f"corpus.sources.{name}.path"),
                    "license": self.readers[name].license,
                    "documents": progress.documents[name],
                    "tokens": progress.tokens[name],
                    "rounds": rounds[name],
                    "validation_documents": progress.validation_documents[name],
                    "validation_tokens": progress.validation_tokens[name],
                }
                for name, source in config.sources.items()
            },
            documents_without_text=progress.empty,
        )
        return {
            "tokens": total,
            "documents": sum(progress.documents.values()),
            "validation_tokens": sum(progress.validation_tokens.values()),
            "tokens_per_second": rate,
        }


def _digest(parts: Mapping[str, list[Path]]) -> str:
    """Returns the digest of the ids of each part, whatever files they are cut into."""
    digest = hashlib.sha256()
    for name, files in parts.items():
        digest.update(f"{name} {sum(file.stat().st_size for file in files)}\n".encode())
        for file in files:
            with file.open("rb") as content:
                while chunk := content.read(CHUNK_BYTES):
                    digest.update(chunk)
    return digest.hexdigest()
