"""Computes word and character error rates, by jiwer, with their parts and the counts of each item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.evaluate.bootstrap import Array

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Errors:
    """Counts of the best alignment of each of N items, in words or characters; shape (N,)."""

    substitutions: Counts
    deletions: Counts
    insertions: Counts
    hits: Counts

    @property
    def errors(self) -> Counts:
        return self.substitutions + self.deletions + self.insertions

    @property
    def length(self) -> Counts:
        """Returns the length of the references."""
        return self.substitutions + self.deletions + self.hits

    @property
    def stats(self) -> Array:
        """Returns `stats_N2`: errors and reference length, the input of `rate`."""
        return np.stack([self.errors, self.length], axis=1).astype(np.float64)


def words(references: Sequence[str], hypotheses: Sequence[str]) -> Errors:
    """Counts errors in words. References must not be empty; hypotheses may be."""
    import jiwer

    return _counted(jiwer.process_words(list(references), list(hypotheses)))


def characters(references: Sequence[str], hypotheses: Sequence[str]) -> Errors:
    """Counts errors in characters, spaces included."""
    import jiwer

    return _counted(jiwer.process_characters(list(references), list(hypotheses)))


def rate(sums_S2: Array) -> Array:
    """Returns errors in percent of the references' length; above 100 if a model inserts more than there is to say."""
    rates_S: Array = 100 * sums_S2[:, 0] / sums_S2[:, 1]
    return rates_S


def _counted(output: Any) -> Errors:
    counts = {kind: np.zeros(len(output.alignments), np.int64) for kind in ("substitute", "delete", "insert", "equal")}
    for n, chunks in enumerate(output.alignments):
        for chunk in chunks:
            # an insertion has no extent in the reference
            of_reference = chunk.ref_end_idx - chunk.ref_start_idx
            counts[chunk.type][n] += of_reference or chunk.hyp_end_idx - chunk.hyp_start_idx
    return Errors(counts["substitute"], counts["delete"], counts["insert"], counts["equal"])
