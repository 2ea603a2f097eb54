"""Records the progress of a running stage in a small file beside its output, for watching from another terminal."""

from __future__ import annotations

import json
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline.disk import replace_text
from pipeline.process import is_dead, this_process

SECONDS_BETWEEN = 1.0
RATE_SECONDS = 60.0


@dataclass(frozen=True)
class Progress:
    process: str
    started: float
    """Start of the stage, in seconds since the epoch."""
    updated: float
    what: str = ""
    """What is being counted; empty before the first bar."""
    done: int = 0
    total: int = 0
    unit: str = ""
    rate: float = 0.0
    """Units a second over the last minute; 0: not known yet."""
    shown: dict[str, float] = field(default_factory=dict)
    """Values shown beside the bar, such as a loss."""

    @property
    def alive(self) -> bool:
        """Returns False only if it is known that the process was on this machine and is gone."""
        return not is_dead(self.process)

    @property
    def seconds_left(self) -> float | None:
        """Returns the seconds left of the current count; None if unknown. A stage may count several things, one after
        the other."""
        return (self.total - self.done) / self.rate if self.rate > 0 else None


def read(path: Path) -> Progress | None:
    """Reads the progress; None if no stage works or worked there."""
    try:
        return Progress(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError):  # gone, or from before a power cut
        return None


class ProgressFile:
    """Progress written at most once a second; the store deletes the file when the stage ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._started = time.time()
        self._written = 0.0
        self._samples: deque[tuple[float, int]] = deque()
        self._write(Progress(this_process(), self._started, self._started))

    def begin(self, what: str, total: int, unit: str) -> None:
        self._samples.clear()
        self._record(what, 0, total, unit, {})

    def update(self, what: str, done: int, total: int, unit: str, shown: dict[str, float]) -> None:
        now = time.monotonic()
        # samples begin with the first step: a stage that resumes counts all its earlier steps at once
        if self._samples and now - self._written < SECONDS_BETWEEN and done < total:
            return
        self._samples.append((now, done))
        while len(self._samples) > 2 and now - self._samples[0][0] > RATE_SECONDS:
            self._samples.popleft()
        self._record(what, done, total, unit, shown)

    def _record(self, what: str, done: int, total: int, unit: str, shown: dict[str, float]) -> None:
        (then, before), (now, after) = (self._samples[0], self._samples[-1]) if self._samples else ((0.0, 0), (0.0, 0))
        rate = (after - before) / (now - then) if now > then else 0.0
        self._write(Progress(this_process(), self._started, time.time(), what, done, total, unit, rate, dict(shown)))

    def _write(self, progress: Progress) -> None:
        self._written = time.monotonic()
        with suppress(OSError):  # progress is optional: a full disk must not stop the work
            replace_text(self._path, json.dumps(asdict(progress)))
