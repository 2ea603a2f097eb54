"""The log of a running stage (contracts.Log): metrics to a file and the tracker, progress and notes to the terminal."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from pipeline.progress import ProgressFile
from stages.contracts import CURVES

RATE_SECONDS = 600.0
"""A rate is averaged over this many seconds: steps may take minutes."""
SECONDS_BETWEEN_LINES = 30.0
"""Time between two lines of progress, where there is no terminal."""


class StageLog:
    """Writes metrics as they come to a file that survives a kill and moves into the artifact at the end."""

    def __init__(
        self, node: str, out: Path, resume: Path, console: Console, bars: bool,
        send: Callable[[Mapping[str, float], int, float], None], progress: Path, device: str,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self.resume = resume
        self.device = device
        self.found: dict[str, Any] = {}
        self._node = node
        self._out = out
        self._console = console
        self._bars = bars
        self._send = send
        self._progress = ProgressFile(progress)
        self._should_stop = should_stop
        self._file: TextIO | None = None

    def __enter__(self) -> StageLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._file:
            self._file.close()
            if error is None:
                shutil.copyfile(self._path, self._out / CURVES)

    @property
    def should_stop(self) -> bool:
        return self._should_stop()

    @property
    def _path(self) -> Path:
        return self.resume / CURVES

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self._write({"step": step, "time": time.time(), "metrics": {name: float(v) for name, v in values.items()}})

    def rewind(self, step: int) -> None:
        text = self._path.read_text(encoding="utf-8", errors="replace") if self._path.exists() else ""
        earlier = text.splitlines()
        points = [point for point in map(_parsed, earlier) if point and point["step"] <= step]
        # replaced by one rename: a kill in between keeps the old curve
        rewritten = self._path.with_suffix(".new")
        rewritten.parent.mkdir(parents=True, exist_ok=True)
        rewritten.write_text("".join(json.dumps(point) + "\n" for point in points), encoding="utf-8")
        rewritten.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8", buffering=1)
        for point in points:
            self._send(point["metrics"], point["step"], point["time"])

    def facts(self, **found: Any) -> None:
        self.found |= json.loads(json.dumps(found))

    def note(self, line: str) -> None:
        self._console.print(f"  {self._node}: {line}", highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, what: str, total: int, unit: str) -> Iterator[_Bar]:
        progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            _Rate(unit),
            TimeElapsedColumn(),
            TextColumn("[dim]elapsed, left[/]"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[shown]}"),
            console=self._console,
            transient=True,
            disable=not (self._bars and self._console.is_terminal),  # elsewhere it would leave empty lines
            speed_estimate_period=RATE_SECONDS,
        )
        self._progress.begin(what, total, unit)
        say = self.note if self._bars and not self._console.is_terminal else None
        with progress:
            yield _Bar(progress, progress.add_task(what, total=total, shown=""), self._progress, what, unit, say)

    def _write(self, point: dict[str, Any]) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # what an earlier, killed attempt wrote holds only if the stage resumes (`rewind`)
            self._file = self._path.open("w", encoding="utf-8", buffering=1)
        self._file.write(json.dumps(point) + "\n")
        self._send(point["metrics"], point["step"], point["time"])


def _parsed(line: str) -> dict[str, Any] | None:
    """Returns a point of the curve, or None for a line that is damaged or that a kill cut short."""
    try:
        point = json.loads(line)
        return {
            "step": int(point["step"]),
            "time": float(point["time"]),
            "metrics": {str(name): float(value) for name, value in point["metrics"].items()},
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


class _Bar:
    def __init__(
        self, progress: Progress, task: TaskID, file: ProgressFile, what: str, unit: str,
        say: Callable[[str], None] | None,
    ) -> None:  # fmt: skip
        """Calls `say` with a line now and then if there is no terminal to draw on."""
        self._progress = progress
        self._task = task
        self._file = file
        self._what = what
        self._unit = unit
        self._say = say
        self._said = time.monotonic()

    def advance(self, steps: int = 1, **shown: float) -> None:
        text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        if shown:
            self._progress.update(self._task, advance=steps, shown=text)
        else:
            self._progress.update(self._task, advance=steps)
        task = self._progress.tasks[0]
        self._file.update(self._what, int(task.completed), int(task.total or 0), self._unit, shown)
        if self._say and time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self._say(f"{self._what} {task.completed:.0f}/{task.total:.0f} {self._unit}  {text}".rstrip())
            self._said = time.monotonic()


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text(f"-- {self._unit}/s", style="cyan")
        shown = f"{speed:.3g} {self._unit}/s" if speed >= 1 else f"{1 / speed:.3g} s/{self._unit}"
        return Text(shown, style="cyan")
