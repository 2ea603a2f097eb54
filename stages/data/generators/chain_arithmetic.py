"""Chains of one-digit sums and differences with every step written out: `3-7+2=` -> `3-7=-4;-4+2=-2#-2`.

There are as many different items as wanted, with exact answers, and the difficulty grows with the number of terms.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from pydantic import Field, model_validator

from stages.data.generators import GeneratorOptions

_TRIES = 50
"""Draws without a new item of a length after which it counts as exhausted."""


class ChainOptions(GeneratorOptions):
    fewest_terms: int = Field(2, ge=2)
    """Terms of the shortest chains."""
    most_terms: int = Field(6, ge=2)
    """Terms of the longest chains."""
    largest: int = Field(9, ge=1)
    """The largest number that is drawn; the smallest is 0."""

    @model_validator(mode="after")
    def _in_order(self) -> ChainOptions:
        if self.fewest_terms > self.most_terms:
            raise ValueError(f"fewest_terms={self.fewest_terms} is over most_terms={self.most_terms}")
        return self


def solved(numbers: list[int], signs: list[str]) -> str:
    """Returns each step, and the answer after `#`."""
    total, steps = numbers[0], []
    for sign, number in zip(signs, numbers[1:], strict=True):
        after = total + number if sign == "+" else total - number
        steps.append(f"{total}{sign}{number}={after}")
        total = after
    return f"{';'.join(steps)}#{total}"


class ChainArithmetic:
    options = ChainOptions

    def items(self, options: ChainOptions, size: int, seed: int) -> Iterator[dict[str, Any]]:
        """Yields {"question", "answer", "terms"}, cycling through the lengths."""
        draw = random.Random(f"chain arithmetic {seed}")
        lengths = list(range(options.fewest_terms, options.most_terms + 1))
        misses = dict.fromkeys(lengths, 0)
        seen: set[str] = set()
        while len(seen) < size and lengths:
            for terms in list(lengths):
                numbers = [draw.randint(0, options.largest) for _ in range(terms)]
                signs = [draw.choice("+-") for _ in range(terms - 1)]
                rest = "".join(f"{sign}{number}" for sign, number in zip(signs, numbers[1:], strict=True))
                question = f"{numbers[0]}{rest}="
                if question in seen:
                    misses[terms] += 1
                    if misses[terms] == _TRIES:
                        lengths.remove(terms)
                elif len(seen) < size:
                    seen.add(question)
                    misses[terms] = 0
                    yield {"question": question, "answer": solved(numbers, signs), "terms": terms}


GENERATOR = ChainArithmetic()
