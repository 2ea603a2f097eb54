"""Assigns rows to train, validation and test. Pure functions of names, ids and fractions."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from stages.contracts import UserError

SPLITS = ("train", "validation", "test")


def named(have: Sequence[str], asked: Mapping[str, str]) -> dict[str, str]:
    """Returns the source's split for each of ours: `asked` if given, else the names that both have. Raises UserError if
    one is missing."""
    chosen = dict(asked) or {name: name for name in SPLITS if name in have}
    for ours, theirs in chosen.items():
        if theirs not in have:
            raise UserError(f"the source has no split {theirs!r}; it has: {', '.join(have)}", f"data.splits.{ours}")
    if "train" not in chosen:
        raise UserError(f"which split is train? The source has: {', '.join(have)}", "data.splits")
    return chosen


@dataclass(frozen=True)
class Cut:
    """How train is cut into the splits that a source lacks: by a hash of each row's `id`.

    Rows of one id stay together, and stay in their split when other rows come or go.
    """

    names: tuple[str, ...]
    bounds: tuple[float, ...]
    """Upper end in [0, 1) of each split but the last."""

    def side(self, identifier: str) -> str:
        """Returns the split of a row of train."""
        return self.names[bisect_right(self.bounds, hash_position(identifier))]


def cut(have: Collection[str], fractions: Sequence[float]) -> Cut:
    """Returns the cut. `fractions` are of train, validation and test; those of splits that the source has are ignored.

    A fraction of 0 makes no split. Raises UserError if nothing is left for rows of train.
    """
    wanted = {name: part for name, part in zip(SPLITS, fractions, strict=True) if part > 0}
    share = {name: part for name, part in wanted.items() if name == "train" or name not in have}
    if not share:
        raise UserError("the fraction of train is 0, and the source has all other splits", "data.fractions")
    return Cut(tuple(share), tuple(bound / sum(share.values()) for bound in accumulate(share.values()))[:-1])


def hash_position(identifier: str) -> float:
    """Returns a position in [0, 1) from sha256: the same on every machine and in every version of Python."""
    return int.from_bytes(hashlib.sha256(identifier.encode()).digest()[:6], "big") / 2**48
