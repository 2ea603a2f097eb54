"""The metrics of generated texts: BLEU and chrF of translations, WER and CER of transcripts, each with its protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.contracts import Log, UserError
from pipeline.schema import Generation
from stages.evaluation import bootstrap, normalizers, word_errors
from stages.evaluation.bootstrap import Array, Score
from stages.evaluation.generation import Item
from stages.evaluation.translation_scores import TranslationScore


@dataclass(frozen=True)
class Scored:
    metrics: dict[str, dict[str, Any]]
    """`{name: {"value", "stderr" | None, "protocol"}}`."""
    parts: dict[str, float]
    """Of the metrics' values: the kinds of errors, in percent of the references' words."""
    counts: list[dict[str, int]]
    """Of each item, what its text alone does not give back."""


def translations(items: Sequence[Item], config: Generation) -> Scored:
    """`bleu` and `chrf`."""
    references, hypotheses = [item.reference for item in items], [item.hypothesis for item in items]
    metrics = {}
    for name in ("bleu", "chrf"):
        metric = TranslationScore(name)
        stats_NK = metric.stats(references, hypotheses)
        known = {"kind": f"sacrebleu {name}", "signature": metric.signature, "higher_is_better": True}
        metrics[name] = _metric(stats_NK, metric.score, config, known)
    return Scored(metrics, {}, [{} for _ in items])


def transcripts(items: Sequence[Item], config: Generation, log: Log) -> Scored:
    """`wer` and `cer` in percent; parts `wer_substitutions`, `wer_deletions`, `wer_insertions`.

    Raises UserError for a reference without words.
    """
    normalizer = normalizers.load(config.normalizer, log)
    references = [normalizer.apply(item.reference) for item in items]
    hypotheses = [normalizer.apply(item.hypothesis) for item in items]
    for item, reference in zip(items, references, strict=True):
        if not reference:
            raise UserError(
                f"the reference of {item.id} has no words left ({item.reference!r}, normalizer={config.normalizer}); "
                "leave the clip out of the data or choose another normaliser",
                normalizers.OPTION,
            )
    words = word_errors.words(references, hypotheses)
    characters = word_errors.characters(references, hypotheses)
    kinds = {
        "substitutions": int(words.substitutions.sum()),
        "deletions": int(words.deletions.sum()),
        "insertions": int(words.insertions.sum()),
    }
    reference_words = int(words.length.sum())
    counted = kinds | {"hits": int(words.hits.sum()), "reference_words": reference_words}
    of_wer = {"kind": "jiwer wer, percent", "higher_is_better": False, **normalizer.protocol, **counted}
    of_cer = {
        "kind": "jiwer cer, percent", "higher_is_better": False, **normalizer.protocol,
        "reference_characters": int(characters.length.sum()),
    }  # fmt: skip
    metrics = {
        "wer": _metric(words.stats, word_errors.rate, config, of_wer),
        "cer": _metric(characters.stats, word_errors.rate, config, of_cer),
    }
    parts = {f"wer_{kind}": 100 * count / reference_words for kind, count in kinds.items()}
    of_items = np.concatenate([words.stats, characters.stats], axis=1).astype(int).tolist()
    names = ("errors", "words", "character_errors", "characters")
    return Scored(metrics, parts, [dict(zip(names, counts, strict=True)) for counts in of_items])


def _metric(stats_NK: Array, score: Score, config: Generation, protocol: dict[str, Any]) -> dict[str, Any]:
    found = bootstrap.interval(stats_NK, score, config.bootstrap, config.seed)
    return {
        "value": float(score(stats_NK.sum(0)[None])[0]),
        "stderr": found.stderr if found else None,
        "protocol": protocol | {
            "stderr": "bootstrap, items independent",
            "interval": [found.low, found.high] if found else None,
            "bootstrap": config.bootstrap,
            "bootstrap_seed": config.seed,
        },
    }  # fmt: skip
