"""Which rows are train, validation and test. Pure functions of names, ids and fractions."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TypeVar

from pipeline.contracts import UserError

SPLITS = ("train", "validation", "test")
T = TypeVar("T", bound=Mapping[str, str])


def named(have: Sequence[str], asked: Mapping[str, str]) -> dict[str, str]:
    """Our split -> theirs. `asked` if given, else the names that both know. Raises UserError if one is missing."""
    chosen = dict(asked) or {name: name for name in SPLITS if name in have}
    for ours, theirs in chosen.items():
        if theirs not in have:
            raise UserError(f"the source has no split {theirs!r}; it has: {', '.join(have)}", f"data.splits.{ours}")
    if "train" not in chosen:
        raise UserError(f"which split is train? The source has: {', '.join(have)}", "data.splits")
    return chosen


def cut(rows: Mapping[str, list[T]], fractions: Sequence[float]) -> dict[str, list[T]]:
    """Cuts the splits that are not in `rows` out of its train, by a hash of each row's `id`.

    Rows of one id stay together, and stay where they are when others come or go. `fractions` are of train,
    validation and test; those of splits that are there already have no part in it. A fraction of 0 makes no split.
    """
    wanted = {name: part for name, part in zip(SPLITS, fractions, strict=True) if part > 0}
    share = {name: part for name, part in wanted.items() if name == "train" or name not in rows}
    done: dict[str, list[T]] = {name: [] for name in share}
    done |= {name: list(kept) for name, kept in rows.items() if name != "train"}
    names = list(share)
    bounds = [bound / sum(share.values()) for bound in accumulate(share.values())][:-1]
    for row in rows["train"]:
        done[names[bisect_right(bounds, hash_position(row["id"]))]].append(row)
    for name, found in done.items():
        if not found:
            raise UserError(f"no rows are left for {name} out of {len(rows['train'])}", "data.fractions")
    return done


def hash_position(identifier: str) -> float:
    """In [0, 1), from sha256: the same on every machine and in every version of Python."""
    return int.from_bytes(hashlib.sha256(identifier.encode()).digest()[:6], "big") / 2**48
