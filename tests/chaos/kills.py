"""Kills at random moments of whole lines: the same line then ends well, with the results of an undisturbed one.

Moments are chosen by progress, so that they are spread over the work on a machine of any speed: after the k-th result
is published, at a random part of the time that an undisturbed line takes for the next one.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline import disk
from tests.chaos import places
from tests.chaos.commands import Line, Running, apart, run, start
from tests.chaos.places import Place
from tests.running import Sources

ATTEMPTS = 5
"""To kill a line before it ends by itself."""
SIGTERM_SHARE = 0.2
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
RUN, OLD, SWEEP = "sparsity=0.5", "sparsity=0.4", ("-m", "sparsity=0.5,0.6")


@dataclass(frozen=True)
class Undisturbed:
    """How a line goes that nobody kills."""

    begins: int
    """Results that are there before it."""
    times: list[float]
    """Seconds after the start: of the start, of each published result, and of the end."""
    expected: dict[str, Any] = field(repr=False)
    """Its results."""


@dataclass(frozen=True)
class Series:
    """Kills of one kind of line."""

    name: str
    count: int
    line: Callable[[Place], Line]
    before: tuple[Callable[[Place], Line], ...] = ()
    """What ran in the place earlier."""
    has_workers: bool = False


def _line(*words: str) -> Callable[[Place], Line]:
    return lambda place: place.line(*words)


SERIES = (
    Series("run in a new place", 36, _line(RUN)),
    Series("run in an old place", 16, _line(RUN), (_line(OLD),)),
    Series("sweep of 2", 16, _line(*SWEEP)),
    Series("sweep of 2, joblib", 16, _line(*SWEEP, *JOBLIB), has_workers=True),
    Series("sweep of 2, joblib, old place", 8, _line(*SWEEP, *JOBLIB), (_line(OLD),), has_workers=True),
    Series("report", 8, Place.report, (_line(*SWEEP),)),
)


def _place(series: Series, folder: Path, sources: Sources) -> Place:
    """As it is before the line; made once, then copied."""
    template = folder / "template"
    if not series.before:
        return places.make(folder / "trial", sources)
    if not (template / "made").exists():
        place = places.make(template, sources)
        for line in series.before:
            assert run(line(place), template / "output").code == 0, (template / "output").read_text()
        (template / "made").touch()
    return places.copied(Place(template, sources), folder / "trial")


def undisturbed(series: Series, folder: Path, sources: Sources) -> Undisturbed:
    """Watched once, then read from the folder."""
    kept = folder / "undisturbed.json"
    if not kept.exists():
        seen = asdict(_watched(series, folder, sources))
        disk.replace_text(kept, json.dumps(seen))
    return Undisturbed(**json.loads(kept.read_text()))


def _watched(series: Series, folder: Path, sources: Sources) -> Undisturbed:
    place = _place(series, folder, sources)
    begins = place.num_published()
    running, started = start(series.line(place), place.folder / "output"), time.monotonic()
    times = [0.0]
    while not running.has_ended():
        times += [time.monotonic() - started] * (place.num_published() - begins + 1 - len(times))
        time.sleep(0.005)
    times += [time.monotonic() - started]
    assert running.code == 0, running.said
    left = running.survivors()
    found = apart(lambda: places.faults(place, places.results(place)))
    assert not [*found, *left], f"an undisturbed line leaves {found} {left}"
    return Undisturbed(begins, times, places.results(place))


def trial(
    series: Series, usual: Undisturbed, draw: random.Random, folder: Path, sources: Sources
) -> tuple[str, list[str]]:
    """What was done, and what is at fault afterwards."""
    number = signal.SIGTERM if draw.random() < SIGTERM_SHARE else signal.SIGKILL
    everybody = draw.random() < (0.3 if series.has_workers else 0.5)
    at_once = draw.random() < 0.5
    for _ in range(ATTEMPTS):
        place = _place(series, folder, sources)
        killed = start(series.line(place), place.folder / "killed")
        moment = _wait_for_moment(killed, place, usual, draw)
        if moment:
            break
    else:
        return "never killed", ["it ended by itself each time"]
    killed.kill(number, everybody)
    killed.wait()
    found = [f"the killed line: {line}" for line in unclear(killed)]
    if not at_once:
        found += [f"{len(left)} processes outlive it" for left in [killed.survivors()] if left]
    again = run(series.line(place), place.folder / "again")
    if again.code != 0:
        found.append(f"the same line ends with {again.code}: {last_line(again)}")
    found += [f"the same line: {line}" for line in unclear(again)]
    found += [f"{len(left)} processes outlive {who}" for who, it in (("it", killed), ("the same line", again))
              for left in [it.survivors()] if left]  # fmt: skip
    found += apart(lambda: places.faults(place, usual.expected))
    who = "all" if everybody else "leader"
    return f"{number.name} {who} {moment}{' at once' if at_once else ''}", found


def _wait_for_moment(running: Running, place: Place, usual: Undisturbed, draw: random.Random) -> str:
    """Empty if the line ended before."""
    published = draw.randrange(len(usual.times) - 1)
    part = draw.random()
    while place.num_published() - usual.begins < published:
        if running.has_ended():
            return ""
        time.sleep(0.002)
    time.sleep(part * (usual.times[published + 1] - usual.times[published]))
    if running.has_ended():
        return ""
    return f"after {published} of {len(usual.times) - 2} results and {part:.2f} of the next"


def unclear(running: Running) -> Iterator[str]:
    if "Traceback" in running.said or "traceback:" in running.said:
        yield f"a traceback: {last_line(running)}"


def last_line(running: Running) -> str:
    return next((line[:300] for line in reversed(running.said.splitlines()) if line.strip()), "(nothing)")
