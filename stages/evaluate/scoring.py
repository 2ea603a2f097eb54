"""Computes the metrics of generated texts: BLEU and chrF of translations, WER and CER of transcripts, each with its
protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.contracts import Log, UserError
from stages.evaluate import bootstrap, normalizers, tokenizers, word_errors
from stages.evaluate.bootstrap import Array, Score
from stages.evaluate.generation import Item
from stages.evaluate.spec import Generation
from stages.evaluate.translation_scores import TranslationScore


@dataclass(frozen=True)
class Scored:
    metrics: dict[str, dict[str, Any]]
    """`{name: {"value", "stderr" | None, "protocol"}}`."""
    parts: dict[str, float]
    """Parts of the metrics' values: the kinds of errors, in percent of the references' words."""
    counts: list[dict[str, int]]
    """Counts of each item that cannot be recomputed from its text alone."""


def translations(items: Sequence[Item], config: Generation) -> Scored:
    """Returns `bleu` and `chrf`."""
    references, hypotheses = [item.reference for item in items], [item.hypothesis for item in items]
    metrics = {}
    for name in ("bleu", "chrf"):
        metric = TranslationScore(name, tokenizers.chosen(config.tokenize, references) if name == "bleu" else "")
        stats_NK = metric.stats(references, hypotheses)
        known = {"kind": f"sacrebleu {name}", "signature": metric.signature, "higher_is_better": True}
        metrics[name] = _metric(stats_NK, metric.score, config, known)
    return Scored(metrics, {}, [{} for _ in items])


def transcripts(items: Sequence[Item], config: Generation, log: Log) -> Scored:
    """Returns `wer` and `cer` in percent, with the parts `wer_substitutions`, `wer_deletions`, `wer_insertions`.

    Items whose reference is empty after normalisation are left out and counted. Raises UserError if all of them are, or
    if the normaliser would cut words of these texts.
    """
    normalizer = normalizers.load(config.normalizer, log)
    normalizers.check(config.normalizer, [item.reference for item in items])
    written = [normalizer.apply(item.reference) for item in items]
    kept = _with_words(written, config)
    references = [written[n] for n in kept]
    hypotheses = [normalizer.apply(items[n].hypothesis) for n in kept]
    words = word_errors.words(references, hypotheses)
    characters = word_errors.characters(references, hypotheses)
    kinds = {
        "substitutions": int(words.substitutions.sum()),
        "deletions": int(words.deletions.sum()),
        "insertions": int(words.insertions.sum()),
    }
    reference_words = int(words.length.sum())
    counted = kinds | {"hits": int(words.hits.sum()), "reference_words": reference_words}
    left_out = {"left_out_without_words": len(items) - len(kept)}
    of_wer = {"kind": "jiwer wer, percent", "higher_is_better": False, **normalizer.protocol, **counted, **left_out}
    of_cer = {
        "kind": "jiwer cer, percent", "higher_is_better": False, **normalizer.protocol, **left_out,
        "reference_characters": int(characters.length.sum()),
    }  # fmt: skip
    metrics = {
        "wer": _metric(words.stats, word_errors.rate, config, of_wer),
        "cer": _metric(characters.stats, word_errors.rate, config, of_cer),
    }
    parts = {f"wer_{kind}": 100 * count / reference_words for kind, count in kinds.items()}
    of_items = np.zeros((len(items), 4), dtype=int)
    of_items[kept] = np.concatenate([words.stats, characters.stats], axis=1)
    if not tokenizers.separates_words(references):
        log.note("these references write words without spaces, so that wer counts whole phrases; read cer")
    if len(kept) < len(items):
        log.note(f"{len(items) - len(kept)} of {len(items)} references have no words left and do not count")
    names = ("errors", "words", "character_errors", "characters")
    return Scored(metrics, parts, [dict(zip(names, counts, strict=True)) for counts in of_items.tolist()])


def check_references(references: Sequence[str], config: Generation) -> None:
    """Raises UserError if WER of these references is undefined, or is not that of their words."""
    normalizers.check(config.normalizer, references)
    if config.normalizer != "english":  # its spelling map has to be fetched, and it drops no words
        normalizer = normalizers.without_package(config.normalizer)
        _with_words([normalizer.apply(reference) for reference in references], config)


def _with_words(references: Sequence[str], config: Generation) -> list[int]:
    """Returns the indices of the normalised references that are not empty."""
    kept = [number for number, reference in enumerate(references) if reference]
    if references and not kept:
        raise UserError(
            f"no reference has words left (normalizer={config.normalizer}); choose another normaliser",
            normalizers.OPTION,
        )
    return kept


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
