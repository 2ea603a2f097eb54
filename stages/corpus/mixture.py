"""Chooses the source of the next document, and which documents are kept for validation. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from stages.data.splits import hash_position


def next_source(tokens: Mapping[str, int], weights: Mapping[str, float] | None, ended: Collection[str]) -> str | None:
    """Returns the source that is furthest behind its share of the tokens taken so far; the first of those equal.

    So shares are exact whatever the lengths of documents are, and a resumed run needs no state but the counts. Without
    weights: the first that has not `ended`, and None when all have.
    """
    if weights is None:
        return next((name for name in tokens if name not in ended), None)
    return min(tokens, key=lambda name: tokens[name] / weights[name])


def is_done(total: int, wanted: int, ended: Collection[str], sources: Collection[str]) -> bool:
    """Returns whether there are as many tokens as wanted; with 0, whether every source has been read to its end."""
    return total >= wanted if wanted else set(sources) <= set(ended)


def is_validation(text: str, fraction: float) -> bool:
    """Decides by a hash of the text alone, so that a document and its copies are on one side, whatever else is read."""
    return hash_position(text) >= 1 - fraction
