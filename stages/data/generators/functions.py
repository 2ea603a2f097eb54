"""Small Python functions: a signature and a docstring -> a body of one line, with tests, in HumanEval's form.

Each is a template with random names and constants. The tests compare with what the template's own body returns for
random arguments.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import Field

from stages.data.generators import GeneratorOptions

_TRIES = 2000
"""Draws in a row without a new item after which the templates count as exhausted."""
_FUNCTIONS = ("solve", "work", "answer", "apply", "handle", "process", "run_task", "step", "convert", "compute", "find")
_NAMES = {
    "n": ("n", "x", "number", "value", "count", "amount", "k"),
    "l": ("items", "numbers", "values", "data", "row", "series"),
    "s": ("text", "word", "line", "name", "message"),
}
_WORDS = ("river", "stone", "blue", "letter", "window", "seven", "apple", "tree", "small", "green", "north", "paper")
_LETTERS = "aeilnorst"

TEMPLATES: tuple[tuple[str, str, str], ...] = (
    ("n", "Return {x} plus {a}.", "{x} + {a}"),
    ("n", "Return {x} minus {a}.", "{x} - {a}"),
    ("n", "Return {a} minus {x}.", "{a} - {x}"),
    ("n", "Return {x} multiplied by {a}.", "{x} * {a}"),
    ("n", "Return the square of {x}, plus {a}.", "{x} ** 2 + {a}"),
    ("n", "Return {a} times {x}, plus {b}.", "{a} * {x} + {b}"),
    ("n", "Return the remainder of {x} divided by {a}.", "{x} % {a}"),
    ("n", "Return {x} divided by {a}, rounded down.", "{x} // {a}"),
    ("n", "Return whether {x} is divisible by {a}.", "{x} % {a} == 0"),
    ("n", "Return whether {x} is greater than {a}.", "{x} > {a}"),
    ("n", "Return whether {x} is at most {a}.", "{x} <= {a}"),
    ("n", "Return the larger of {x} and {a}.", "max({x}, {a})"),
    ("n", "Return the smaller of {x} and {a}.", "min({x}, {a})"),
    ("n", "Return the distance between {x} and {a}.", "abs({x} - {a})"),
    ("n", "Return the sum of the digits of {x}.", "sum(int(digit) for digit in str({x}))"),
    ("n", "Return {x} as text, with zeros in front up to {a} characters.", "str({x}).zfill({a})"),
    ("nn", "Return the sum of {x} and {y}.", "{x} + {y}"),
    ("nn", "Return the product of {x} and {y}.", "{x} * {y}"),
    ("nn", "Return {a} times {x}, minus {y}.", "{a} * {x} - {y}"),
    ("nn", "Return the mean of {x} and {y}.", "({x} + {y}) / 2"),
    ("nn", "Return whether {x} and {y} are both greater than {a}.", "{x} > {a} and {y} > {a}"),
    ("l", "Return the sum of {x}.", "sum({x})"),
    ("l", "Return the largest of {x}, plus {a}.", "max({x}) + {a}"),
    ("l", "Return the smallest of {x}.", "min({x})"),
    ("l", "Return the elements of {x} that are greater than {a}.", "[item for item in {x} if item > {a}]"),
    ("l", "Return the elements of {x} that are even.", "[item for item in {x} if item % 2 == 0]"),
    ("l", "Return each element of {x}, multiplied by {a}.", "[item * {a} for item in {x}]"),
    ("l", "Return how often {a} stands in {x}.", "{x}.count({a})"),
    ("l", "Return {x} in reverse order.", "{x}[::-1]"),
    ("l", "Return the first {a} elements of {x}.", "{x}[:{a}]"),
    ("l", "Return the last {a} elements of {x}.", "{x}[-{a}:]"),
    ("l", "Return {x}, sorted from large to small.", "sorted({x}, reverse=True)"),
    ("l", "Return the different elements of {x}, sorted.", "sorted(set({x}))"),
    ("l", "Return the sum of the squares of {x}.", "sum(item ** 2 for item in {x})"),
    ("l", "Return whether {a} is in {x}.", "{a} in {x}"),
    ("l", "Return where the largest element of {x} stands.", "{x}.index(max({x}))"),
    ("s", "Return {x} in capital letters.", "{x}.upper()"),
    ("s", "Return {x} read backwards.", "{x}[::-1]"),
    ("s", "Return how often the letter {c} stands in {x}.", "{x}.count({c!r})"),
    ("s", "Return {x}, {a} times in a row.", "{x} * {a}"),
    ("s", "Return the first {a} characters of {x}.", "{x}[:{a}]"),
    ("s", "Return the words of {x} in reverse order.", "' '.join({x}.split()[::-1])"),
    ("s", "Return whether {x} begins with the letter {c}.", "{x}.startswith({c!r})"),
    ("s", "Return {x} with each letter {c} replaced by {d}.", "{x}.replace({c!r}, {d!r})"),
    ("s", "Return the number of words in {x}.", "len({x}.split())"),
)
"""Kinds of the arguments (number, list, string), docstring, and the returned expression."""


class FunctionOptions(GeneratorOptions):
    tests: int = Field(4, ge=1)
    """Calls that a body has to pass."""


class Functions:
    options = FunctionOptions

    def items(self, options: FunctionOptions, size: int, seed: int) -> Iterator[dict[str, Any]]:
        """Yields {"prompt", "canonical_solution", "test", "entry_point", "task", "template"}, cycling through the
        templates. Items of one `task` have the same constants, those of one `template` the same body apart from names
        and constants."""
        draw = random.Random(f"functions {seed}")
        seen: set[str] = set()
        misses = number = 0
        while len(seen) < size and misses < _TRIES:
            item = _item(draw, number % len(TEMPLATES), options.tests)
            number, misses = number + 1, misses + 1
            if item["prompt"] not in seen:
                seen.add(item["prompt"])
                misses = 0
                yield item


def _item(draw: random.Random, template: int, tests: int) -> dict[str, Any]:
    kinds, docstring, returned = TEMPLATES[template]
    names = draw.sample(_NAMES[kinds[0]], len(kinds))
    function = draw.choice(_FUNCTIONS)
    letters = draw.sample(_LETTERS, 2)
    constants: dict[str, Any] = {"a": draw.randint(2, 20), "b": draw.randint(2, 20), "c": letters[0], "d": letters[1]}
    if "{x}[" in returned or "zfill" in returned or "times in a row" in docstring:
        constants["a"] = draw.randint(2, 6)
    fields = {"x": names[0], "y": names[-1], **constants}
    body = returned.format(**fields)
    used = [f"{name}={value}" for name, value in constants.items() if f"{{{name}" in returned]
    arguments = [tuple(_DRAWN[kind](draw, constants["a"]) for kind in kinds) for _ in range(tests)]
    calls = [f"    assert candidate{_call(given)} == {_value(names, body, given)!r}" for given in arguments]
    return {
        "prompt": f'def {function}({", ".join(names)}):\n    """{docstring.format(**fields)}"""',
        "canonical_solution": f"    return {body}",
        "test": "\n".join(["def check(candidate):", *calls]),
        "entry_point": function,
        "task": " ".join([f"template {template}", *used]),
        "template": str(template),
    }


def _value(names: list[str], body: str, given: tuple[Any, ...]) -> Any:
    """Returns what one of the bodies above returns."""
    # a scope of its own for the names inside comprehensions
    return eval(body, dict(zip(names, given, strict=True)))


def _call(given: tuple[Any, ...]) -> str:
    return f"({', '.join(repr(value) for value in given)})"


def _number(draw: random.Random, near: int) -> int:
    return draw.choice((near, near * draw.randint(2, 9), draw.randint(0, 99), draw.randint(0, 30)))


def _list(draw: random.Random, near: int) -> list[int]:
    return [draw.choice((near, draw.randint(0, 40))) for _ in range(draw.randint(3, 8))]


def _text(draw: random.Random, near: int) -> str:
    return " ".join(draw.sample(_WORDS, draw.randint(1, 3)))


_DRAWN: dict[str, Callable[[random.Random, int], Any]] = {"n": _number, "l": _list, "s": _text}

GENERATOR = Functions()
