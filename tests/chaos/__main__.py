"""A campaign of faults on tiny runs: kills at random moments, full disks, a flipped byte in every stored file.

`python -m tests.chaos` (`make chaos`) takes more than half an hour and prints what it counted. Exit code: 1 if
anything was at fault. Each trial is seeded by its name, and is noted in `results.jsonl` of the folder when it is done:
the same line goes on where it was ended.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.chaos import disks, flips, kills
from tests.chaos.commands import import_everything
from tests.running import PROJECT, Sources, make_sources

RECORD = "results.jsonl"


@dataclass(frozen=True)
class Trial:
    campaign: str
    name: str
    what: str
    """Was done."""
    faults: list[str]
    seconds: float


Done = tuple[str, list[str]]
"""What was done, and what is at fault."""
Do = Callable[[random.Random], Done]
Begin = Callable[[Path, Sources], Iterable[tuple[str, Do]]]
"""Prepares; the trials by name, in order."""


@dataclass(frozen=True)
class Campaign:
    name: str
    begin: Begin


def _kills(series: kills.Series) -> Begin:
    def begin(folder: Path, sources: Sources) -> Iterator[tuple[str, Do]]:
        usual = kills.undisturbed(series, folder, sources)
        for number in range(series.count):
            yield str(number), lambda draw: kills.trial(series, usual, draw, folder, sources)

    return begin


def _too_small(name: str, count: int) -> Begin:
    def begin(folder: Path, sources: Sources) -> Iterator[tuple[str, Do]]:
        expected, used_kb = disks.undisturbed(folder, sources)
        for number in range(count):

            def do(draw: random.Random, number: int = number) -> Done:
                size_kb = 4 + round(used_kb[name] * ((number + draw.random()) / count) ** 1.5)
                return disks.too_small(name, size_kb, expected, folder, sources)

            yield str(number), do

    return begin


def _fills_up(name: str, count: int) -> Begin:
    def begin(folder: Path, sources: Sources) -> Iterator[tuple[str, Do]]:
        expected, _ = disks.undisturbed(folder, sources)
        for number in range(count):
            yield str(number), lambda draw: disks.fills_up(name, draw, expected, folder, sources)

    return begin


def _stored(kind: str) -> Begin:
    how = flips.DAMAGES[kind]

    def begin(folder: Path, sources: Sources) -> Iterator[tuple[str, Do]]:
        whole = flips.whole(folder, sources, "sparsity=0.5")
        for result, file in list(whole.files()):

            def do(draw: random.Random, result: str = result, file: str = file) -> Done:
                return flips.trial(whole, result, file, how, draw, folder / "trial")

            yield f"{result}/{file}", do

    return begin


def _records(kind: str, *line: str) -> Begin:
    how = flips.DAMAGES[kind]

    def begin(folder: Path, sources: Sources) -> Iterator[tuple[str, Do]]:
        whole = flips.whole(folder, sources, *line)
        for number, path in enumerate(list(whole.records())):

            def do(draw: random.Random, path: str = path) -> Done:
                what, faults = flips.trial_of_record(whole, path, how, draw, folder / "trial", line)
                return f"{path}: {what}", faults

            yield f"{number} {Path(path).name}", do

    return begin


CAMPAIGNS = (
    *(Campaign(f"kill: {series.name}", _kills(series)) for series in kills.SERIES),
    Campaign("disk: runs too small", _too_small("runs", disks.NUM_SIZES)),
    Campaign("disk: cache too small", _too_small("cache", 6)),
    Campaign("disk: runs fills up", _fills_up("runs", 16)),
    *(Campaign(f"stored file {kind}", _stored(kind)) for kind in flips.DAMAGES),
    *(Campaign(f"record {kind}", _records(kind, "-m", "sparsity=0.5,0.6")) for kind in flips.DAMAGES),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--folder", type=Path, default=PROJECT / "build" / "chaos", help="work here (%(default)s)")
    parser.add_argument("--only", default="", help="campaigns whose name holds this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no trial after this time")
    asked = parser.parse_args()
    console = Console(width=200, soft_wrap=True)
    import_everything()
    folder = asked.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    sources = make_sources(folder / "sources")
    campaigns = [campaign for campaign in CAMPAIGNS if asked.only in campaign.name]
    until = time.monotonic() + asked.seconds
    for campaign in campaigns:
        _run(campaign, folder, sources, asked.seed, until, console)
    trials = [trial for trial in _done(folder) if trial.campaign in {campaign.name for campaign in campaigns}]
    _show(trials, console)
    return 1 if any(trial.faults for trial in trials) else 0


def _run(campaign: Campaign, folder: Path, sources: Sources, seed: int, until: float, console: Console) -> None:
    done = {trial.name for trial in _done(folder) if trial.campaign == campaign.name}
    own = folder / campaign.name.replace(": ", "-").replace(" ", "_").replace(",", "")
    for name, do in campaign.begin(own, sources):
        started = time.monotonic()
        if name in done:
            continue
        if started > until:
            return
        what, faults = do(random.Random(f"{seed} {campaign.name} {name}"))
        trial = Trial(campaign.name, name, what, faults, round(time.monotonic() - started, 1))
        with (folder / RECORD).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(trial)) + "\n")
        told = "; ".join(faults) or "right"
        console.print(f"{campaign.name} {name}: {what}: {told} ({trial.seconds:.0f} s)", markup=False, highlight=False)


def _done(folder: Path) -> list[Trial]:
    path = folder / RECORD
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Trial(**json.loads(line)) for line in lines]


def _show(trials: list[Trial], console: Console) -> None:
    table = Table(box=None, header_style="bold")
    for column in ("campaign", "trials", "at fault", "minutes"):
        table.add_column(column, justify="left" if column == "campaign" else "right")
    for name in dict.fromkeys(trial.campaign for trial in trials):
        own = [trial for trial in trials if trial.campaign == name]
        wrong = sum(bool(trial.faults) for trial in own)
        table.add_row(name, str(len(own)), str(wrong), f"{sum(trial.seconds for trial in own) / 60:.0f}")
    console.print(table)
    for trial in trials:
        if trial.faults:
            console.print(f"{trial.campaign} {trial.name}: {trial.what}: {'; '.join(trial.faults)}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
