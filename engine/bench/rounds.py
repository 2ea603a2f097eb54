"""Interleaved rounds: in each round every contender runs once (A B C A B C), so that a slow minute of the machine
affects all of them alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from engine.errors import EngineError

T = TypeVar("T")
C = TypeVar("C", bound="Contender[Any]")


@dataclass(kw_only=True)
class Contender(Generic[T]):
    """A measured runtime or form, and the measurements of its rounds; or the reason why it cannot run."""

    name: str
    measure: Callable[[], T] | None = None
    """Function that runs one round. None: it cannot run."""
    end: Callable[[], object] | None = None
    """Function that ends the runtime's process, if it has one."""
    weight_bytes: int | None = None
    """Bytes read by one product, or one decoding step. None: the runtime does not report it."""
    reason: str | None = None
    """Why it cannot run, or why it failed."""
    rounds: list[T] = field(default_factory=list)

    def run(self, counted: bool) -> None:
        """Runs one round. A contender whose runtime fails takes no further part, and its earlier measurements are
        dropped."""
        if self.measure is None:
            return
        try:
            measured = self.measure()
        except EngineError as error:
            self.close()
            self.reason, self.rounds = str(error), []
        else:
            self.rounds += [measured] * counted

    def close(self) -> None:
        if self.end is not None:
            self.end()
        self.measure = self.end = None


def interleave(contenders: Sequence[C], warmup: int, rounds: int) -> Iterator[tuple[int, C]]:
    """Runs `warmup + rounds` rounds, and yields after each turn its round and its contender. Rounds of the warm-up have
    negative numbers and are not kept."""
    for number in range(-warmup, rounds):
        for contender in contenders:
            contender.run(counted=number >= 0)
            yield number, contender


@dataclass(frozen=True)
class Spread:
    """The values of all rounds; shown as median and range."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    def __str__(self) -> str:
        return f"{three_digits(self.median)} ({three_digits(min(self.values))}–{three_digits(max(self.values))})"


def three_digits(value: float) -> str:
    """Formats a speed or a time to three digits, or to a whole number from 100 on: 6.28, 12500, never 1.25e+04."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def median_seconds(contenders: Iterable[Contender[float]]) -> dict[str, float]:
    """Returns the medians of the contenders that ran, by name."""
    return {contender.name: statistics.median(contender.rounds) for contender in contenders if contender.rounds}


def speedup(medians: dict[str, float], name: str, baseline: str | None) -> float | None:
    """Returns how many times as fast `name` is as `baseline`; None if the baseline did not run."""
    return medians[baseline] / medians[name] if baseline in medians else None
