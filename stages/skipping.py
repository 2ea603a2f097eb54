"""Linears that the user excludes (`prune.skip`, `quantize.skip`)."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from stages.contracts import UserError


def skipped(
    patterns: Sequence[str], names: Collection[str], option: str, left_alone: Collection[str] = ()
) -> dict[str, str]:
    """Returns those of `names` that are skipped, with the first pattern that fully matches. A pattern may match what is
    `left_alone` anyway.

    Raises UserError, naming `option`, for a pattern that is not a regular expression or matches nothing, and when
    nothing is left.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise UserError(f"{pattern!r} is not a regular expression: {error}", option) from None
        hits = [name for name in names if compiled.fullmatch(name)]
        if not hits and not any(compiled.fullmatch(name) for name in left_alone):
            raise UserError(f"{pattern!r} matches no linear; there is for example {next(iter(names))}", option)
        found = dict.fromkeys(hits, pattern) | found
    if len(found) == len(names):
        raise UserError(f"nothing is left: all {len(names)} linears are skipped", option)
    return found
