"""Queues the tokenised documents of a source: read and tokenised in batches, taken one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from stages.corpus.documents import Place, Reader, batches
from stages.corpus.encoding import Encoder, Ids

BATCH_CHARACTERS = 1 << 20
"""Characters that are read and tokenised at once."""


class Feed:
    def __init__(self, reader: Reader, encoder: Encoder, place: Place) -> None:
        self._reader = reader
        self._encoder = encoder
        self._begin = place
        """Where the batch at hand begins."""
        self._texts: list[str] = []
        self._ids: list[Ids] = []
        self._taken = 0
        self._batches: Iterator[list[str]] | None = None

    @property
    def place(self) -> Place:
        """Returns the place of the next document."""
        begin, taken = self._begin, self._taken
        return replace(begin, documents=begin.documents + taken, behind=begin.behind + taken)

    def take(self) -> tuple[str, Ids] | None:
        """Returns the next document; None at the end of a round, after which the next one begins."""
        if self._taken == len(self._texts) and not self._read():
            return None
        at = self._taken
        self._taken += 1
        return self._texts[at], self._ids[at]

    def _read(self) -> bool:
        """Reads the next batch; returns False if the round has none."""
        if self._batches is None:
            self._batches = batches(self._reader, self._begin, BATCH_CHARACTERS)
        elif (state := self._reader.state()) is not None:
            self._begin = replace(self.place, state=state, behind=0)
        else:
            self._begin = self.place
        texts = next(self._batches, None)
        self._taken = 0
        if texts is None:
            self._begin, self._batches, self._texts = Place(rounds=self._begin.rounds + 1), None, []
            return False
        self._texts, self._ids = texts, self._encoder.documents(texts)
        return True
