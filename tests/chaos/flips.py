"""A flipped byte in every stored file, and every stored file cut short: what uses it makes it again, or refuses it in
one line; nothing is used silently, and `verify` and `verify --remove` name it."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import disk
from pipeline.recipes import build
from pipeline.store import record
from pipeline.store.store import Entry, Store
from tests.chaos import places
from tests.chaos.commands import Line, Running, apart, run
from tests.chaos.kills import last_line, unclear
from tests.chaos.places import Place
from tests.composed import config
from tests.running import Sources

STAGES_OF = ("sparsity=0.5", "tracking=none")
RECORDS = ("job.json", "summary.json", "plan.json", "sweep.json", "shared.json", "remembered.json", "mlflow.db")
"""Files outside of the store that are read again."""
Damage = Callable[[bytes, random.Random], bytes]


def flipped(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :]


def cut_short(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


DAMAGES: dict[str, Damage] = {"flipped": flipped, "cut short": cut_short}


def damage(path: Path, how: Damage, draw: random.Random) -> None:
    """The file alone, not what is linked to it; with its time of change."""
    mode, content = path.stat().st_mode, path.read_bytes()
    path.unlink()
    path.write_bytes(how(content, draw))
    path.chmod(mode)


@dataclass(frozen=True)
class Whole:
    """A place in which all is stored, to copy."""

    place: Place
    expected: dict[str, Any]
    readers: dict[str, str]
    """Fingerprint -> the node that reads it; none for what only reports read."""
    names: dict[str, str]
    """Fingerprint -> its node."""

    def files(self) -> Iterator[tuple[str, str]]:
        """(folder of the result below the place, name of the file)."""
        for _, entry in self.place.entries():
            for path in sorted(disk.files_below(entry.path)):
                yield str(entry.path.relative_to(self.place.folder)), path.relative_to(entry.path).as_posix()

    def records(self) -> Iterator[str]:
        for path in sorted(disk.files_below(self.place.folder)):
            if path.name in RECORDS and "store" not in path.relative_to(self.place.folder).parts:
                yield str(path.relative_to(self.place.folder))


def whole(folder: Path, sources: Sources, *line: str) -> Whole:
    place = Place(folder / "whole", sources)
    if not (folder / "made").exists():
        places.make(place.folder, sources)
        for it in (place.line(*line), place.report()):
            done = run(it, folder / "output")
            assert done.code == 0, done.said
        (folder / "made").touch()
    resolved = config(*(word for word in place.line(*STAGES_OF).arguments if not word.startswith("-")))
    names, readers = _graph(place, resolved)
    return Whole(place, places.results(place), readers, names)


def _graph(place: Place, resolved: Any) -> tuple[dict[str, str], dict[str, str]]:
    """(fingerprint -> node, fingerprint -> a node that reads it); a sweep has other jobs' plans, too."""
    graph = build(resolved)
    plans = [json.loads(path.read_text())["nodes"] for path in place.runs.glob("*/**/plan.json")]
    names = {node["fingerprint"]: name for planned in plans for name, node in planned.items()}
    planned = next(planned for planned in plans if graph.keys() <= planned.keys())
    readers: dict[str, str] = {}
    for name, node in graph.items():
        for source in node.inputs.values():
            readers.setdefault(planned[source]["fingerprint"], name)
    return names, readers


def _copy(whole: Whole, folder: Path) -> Place:
    disk.delete(folder)
    # the database of MLflow is written in place, so it is no link
    shutil.copytree(whole.place.folder, folder, copy_function=lambda one, other: (
        shutil.copy2(one, other) if "mlflow" in one else os.link(one, other)))  # fmt: skip
    return Place(folder, whole.place.sources)


def trial(
    whole: Whole, result: str, file: str, how: Damage, draw: random.Random, folder: Path
) -> tuple[str, list[str]]:
    place = _copy(whole, folder)
    store, entry = next(it for it in place.entries() if it[1].path == place.folder / result)
    fingerprint, before = entry.fingerprint, record.read(entry.path)
    damage(entry.path / file, how, draw)
    if file == record.META and record.read(entry.path) == before:
        return "the record says the same", []
    found = _verified(place, store, entry)
    reader = whole.readers.get(fingerprint)
    if reader:
        again = run(place.line(*STAGES_OF, f"force=[{reader}]", f"until={reader}"), folder / "again")
        what = f"{reader} ends with {again.code}"
        found += unclear(again)
        found += apart(lambda: _used_silently(place, whole, result, again))
    else:
        what, told = _reported(place, whole, result)
        found += told
    if file == next(name for at, name in whole.files() if at == result):  # once for each result
        found += _removed(place, whole, store, result, file, how, draw, folder)
    return what, found


def _verified(place: Place, store: Store, entry: Entry) -> list[str]:
    told = run(_verify(place, store), place.folder / "verified")
    named = f"{entry.path.parent.name}/{entry.path.name}"
    return [] if told.code == 1 and named in told.said else [f"verify does not name it: {last_line(told)}"]


def _verify(place: Place, store: Store, *words: str) -> Line:
    return place.store_line("verify", *words, cache=store.root.is_relative_to(place.cache))


def _used_silently(place: Place, whole: Whole, result: str, again: Running) -> list[str]:
    """After a line that read it."""
    found = []
    if again.code == 0 and record.verify(place.folder / result):
        found.append("it was used as it is")
    if again.code != 0 and not _named(again, Path(result).name):
        found.append(f"the refusal does not name it: {last_line(again)}")
    return found + _otherwise(place, whole)


def _reported(place: Place, whole: Whole, result: str) -> tuple[str, list[str]]:
    """What no stage reads: the report must not show other figures without a word, and the same line shows none of
    them."""
    told = run(place.report(), place.folder / "report")
    same = run(place.line(*STAGES_OF), place.folder / "same")
    found = [*unclear(told), *unclear(same)]
    if told.code == 0 and _figures(place) != _figures(whole.place):
        found.append("the report shows other figures, without a word")
    if same.code == 0 and record.verify(place.folder / result):
        found.append("the same line leaves it as it is")
    found += apart(lambda: list(places.differences(places.results(place), whole.expected)))
    return f"the report ends with {told.code}, the same line with {same.code}", found


def _figures(place: Place) -> str:
    """What the report of the only job says, but for the names of folders."""
    (written,) = place.runs.glob("[js]*/*/report.json")
    return written.read_text(encoding="utf-8").replace(str(place.folder), "")


def _removed(
    place: Place, whole: Whole, store: Store, result: str, file: str, how: Damage, draw: random.Random, folder: Path
) -> list[str]:
    """`verify --remove` deletes it, and the same line makes it again."""
    place = _copy(whole, folder)
    damage(place.folder / result / file, how, draw)
    told = run(_verify(place, store, "--remove"), folder / "removed")
    found = [] if Path(result).name in told.said else [f"verify --remove does not name it: {last_line(told)}"]
    if (place.folder / result).exists():
        found.append("verify --remove leaves it")
    again = run(place.line(*STAGES_OF), folder / "again")
    if again.code != 0:
        found.append(f"after verify --remove the same line ends with {again.code}: {last_line(again)}")
    found += unclear(again)
    # what nothing asks for any more is not made again
    return found + apart(lambda: _otherwise(place, whole))


def _otherwise(place: Place, whole: Whole) -> list[str]:
    """How what is there differs from what it was."""
    made = places.results(place)
    return list(places.differences(made, {key: whole.expected[key] for key in {*made} & {*whole.expected}}))


def _named(running: Running, name: str) -> bool:
    return name in running.said


# ---- records ----


def trial_of_record(
    whole: Whole, path: str, how: Damage, draw: random.Random, folder: Path, line: tuple[str, ...]
) -> tuple[str, list[str]]:
    """What reads it says so in a line, or does without it; nothing of it makes another result."""
    place = _copy(whole, folder)
    damage(place.folder / path, how, draw)
    lines = {
        "sweeps": Line("pipeline.sweeps.__main__", ["--runs", str(place.runs), "show"], place.folder),
        "gc": place.store_line("gc"),
        "report": place.report(),
        "relog": Line("pipeline.tracking.__main__", ["relog", "--runs", str(place.runs)], place.folder),
        "same": place.line(*line),
    }
    done = {name: run(it, folder / name) for name, it in lines.items()}
    found = [f"{name}: {line}" for name, it in done.items() for line in unclear(it)]
    if done["same"].code != 0 and "mlflow.db" not in path:
        found.append(f"the same line ends with {done['same'].code}: {last_line(done['same'])}")
    codes = ", ".join(f"{name} {it.code}" for name, it in done.items())
    return codes, found + apart(lambda: list(places.differences(places.results(place), whole.expected)))
