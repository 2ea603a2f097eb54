"""Tokenises texts as documents of a packed corpus: what the tokenizer puts before a text, the text, eos.

Text that looks like a special token is tokenised as plain characters. So no document ends early, and none begins twice
because its text starts with what the tokenizer puts there too.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.contracts import UserError
from stages.tokens import prefix

Ids = NDArray[np.unsignedinteger[Any]]


class Encoder:
    def __init__(self, tokenizer: Any) -> None:
        """Raises UserError for a tokenizer that has no eos."""
        if tokenizer.eos_token_id is None:
            raise UserError("its tokenizer has no end of sequence (eos), with which documents end", "model.path")
        self.dtype: type[np.unsignedinteger[Any]] = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
        self._tokenizer = tokenizer
        # some tokenizers are set to add BOS in two places
        self._begin = [token for token, _ in itertools.groupby(prefix(tokenizer))]
        self._end = tokenizer.eos_token_id
        self._fast = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        if self._fast:
            self._fast.no_truncation()
            self._fast.no_padding()
            self._fast.encode_special_tokens = True

    def documents(self, texts: Sequence[str]) -> list[Ids]:
        """Returns the ids of each text; none for an empty one."""
        return [
            np.array([*self._begin, *ids, self._end], dtype=self.dtype) if ids else np.empty(0, dtype=self.dtype)
            for ids in self._encoded(texts)
        ]

    def _encoded(self, texts: Sequence[str]) -> Iterator[list[int]]:
        if self._fast:
            return (encoded.ids for encoded in self._fast.encode_batch_fast(texts, add_special_tokens=False))
        found: list[list[int]] = self._tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]
        return iter(found)


@contextmanager
def parallel(threads: int) -> Iterator[None]:
    """Lets fast tokenizers use the given number of threads."""
    wanted = {"TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false", "RAYON_NUM_THREADS": str(threads)}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
