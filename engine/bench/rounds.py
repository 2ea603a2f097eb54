"""Interleaved rounds: in each round every contender runs once (A B C A B C), so that a slow minute of the machine hits
all of them alike."""

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
    """Something that is measured, and the measurements of its rounds; or why it cannot run."""

    name: str
    measure: Callable[[], T] | None = None
    """Runs one round. None: it cannot run."""
    end: Callable[[], object] | None = None
    """Ends the runtime's process, where it has one of its own."""
    weight_bytes: int | None = None
    """Read by one product, or one decoding step. None: the runtime does not say."""
    reason: str | None = None
    """Why it cannot run, or why it failed."""
    rounds: list[T] = field(default_factory=list)

    def run(self, counted: bool) -> None:
        """Runs one round. A contender whose runtime fails is out from then on, and what it had measured with it."""
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
        return f"{self.median:.3g} ({min(self.values):.3g}–{max(self.values):.3g})"


def median_seconds(contenders: Iterable[Contender[float]]) -> dict[str, float]:
    """By name, of those that ran."""
    return {contender.name: statistics.median(contender.rounds) for contender in contenders if contender.rounds}


def speedup(medians: dict[str, float], name: str, baseline: str | None) -> float | None:
    """How many times as fast `name` is as `baseline`; None where the baseline did not run."""
    return medians[baseline] / medians[name] if baseline in medians else None
