"""BLEU and chrF of translations, by sacrebleu, from statistics of each sentence that can be summed over any
selection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stages.evaluate.bootstrap import Array


class TranslationScore:
    """One of sacrebleu's corpus metrics, `bleu` or `chrf`, 0 to 100, with its default settings; BLEU uses the named
    tokenizer."""

    def __init__(self, name: str, tokenize: str = "") -> None:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF

        self._metric: Any = BLEU(tokenize=tokenize or None) if name == "bleu" else CHRF()

    def stats(self, references: Sequence[str], hypotheses: Sequence[str]) -> Array:
        """Returns `stats_NK`: BLEU's lengths and n-gram counts, or chrF's n-gram counts, of each sentence."""
        # sacrebleu has no public access to them; its own significance tests use these two methods
        found = self._metric._extract_corpus_statistics(list(hypotheses), [list(references)])
        return np.array(found, dtype=np.float64)

    def score(self, sums_SK: Array) -> Array:
        """Returns `score_S` of summed statistics."""
        rows = [[int(count) for count in sums_K] for sums_K in sums_SK.tolist()]
        return np.array([self._metric._compute_score_from_stats(sums_K).score for sums_K in rows])

    @property
    def signature(self) -> str:
        """Returns sacrebleu's signature, to be quoted beside a score. Known once `stats` has counted the references."""
        return str(self._metric.get_signature())
