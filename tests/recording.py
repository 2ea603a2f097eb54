"""A log that keeps what a stage says, for tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class RecordingLog:
    """`stages.contracts.Log` in memory: what a stage said can be read back."""

    def __init__(self, resume: Path, device: str = "cpu") -> None:
        resume.mkdir(parents=True, exist_ok=True)
        self.device = device
        self.resume = resume
        self.points: list[tuple[int, dict[str, float]]] = []
        """(step, values) in the order they were logged."""
        self.found: dict[str, Any] = {}
        self.notes: list[str] = []
        self.bars: list[str] = []
        self.should_stop = False

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self.points.append((step, dict(values)))

    def rewind(self, step: int) -> None:
        self.points = [point for point in self.points if point[0] <= step]

    def facts(self, **found: Any) -> None:
        self.found |= found

    def note(self, line: str) -> None:
        self.notes.append(line)

    @contextmanager
    def bar(self, what: str, total: int, unit: str) -> Iterator[RecordingBar]:
        self.bars.append(what)
        bar = RecordingBar()
        yield bar
        assert bar.done == total, f"the bar {what!r} ended at {bar.done} of {total}"


class RecordingBar:
    def __init__(self) -> None:
        self.done = 0

    def advance(self, steps: int = 1, **shown: float) -> None:
        self.done += steps


class Killed(Exception):  # noqa: N818
    pass


class DyingLog(RecordingLog):
    """Stops the stage when step `last` has been logged."""

    def __init__(self, folder: Path, last: int) -> None:
        super().__init__(folder)
        self.last = last

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        super().metrics(values, step)
        if step == self.last:
            raise Killed


class KilledLog(RecordingLog):
    """Dies when the first block is done."""

    @contextmanager
    def bar(self, what: str, total: int, unit: str) -> Iterator[Any]:
        class Bar:
            def advance(self, steps: int = 1, **shown: float) -> None:
                raise Killed

        yield Bar()


class AskedToStop(RecordingLog):
    """The process is asked to end while step `last` runs."""

    last = 3

    def metrics(self, values: dict[str, float], step: int = 0) -> None:  # type: ignore[override]
        super().metrics(values, step)
        self.should_stop = step == self.last
