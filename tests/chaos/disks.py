"""Full disks: a small file system in memory under a line's folders, too small from the start or full on the way.

One line says so, and the same line ends well when there is room. Mounting needs root: `sudo make chaos`, or
`unshare --map-root-user --mount make chaos`.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import disk
from tests.chaos import places
from tests.chaos.commands import Running, apart, run, start
from tests.chaos.kills import RUN, last_line, unclear
from tests.chaos.places import Place
from tests.running import Sources

NUM_SIZES = 30
ROOM_KB = 256_000
CLEAR = re.compile("full|No space left|not enough room|free", re.IGNORECASE)
"""What a line that speaks of the disk holds."""


@contextmanager
def _disk(folder: Path, size_kb: int) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _resize(folder: Path, size_kb: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size_kb}k", folder], check=True)


def _used_kb(folder: Path) -> int:
    return shutil.disk_usage(folder).used // 1024


def undisturbed(folder: Path, sources: Sources) -> tuple[dict[str, Any], dict[str, int]]:
    """The results of the line, and how many kB its folders `runs` and `cache` take. Found once, then read."""
    kept = folder / "undisturbed.json"
    if not kept.exists():
        seen = _watched(folder, sources)
        disk.replace_text(kept, json.dumps(seen))
    expected, used_kb = json.loads(kept.read_text())
    return expected, used_kb


def _watched(folder: Path, sources: Sources) -> tuple[dict[str, Any], dict[str, int]]:
    place = places.make(folder / "trial", sources)
    with _disk(place.runs, ROOM_KB), _disk(place.cache, ROOM_KB):
        first = run(place.line(RUN), place.folder / "output")
        assert first.code == 0, first.said
        return places.results(place), {name: _used_kb(place.folder / name) for name in ("runs", "cache")}


def too_small(
    name: str, size_kb: int, expected: Mapping[str, Any], folder: Path, sources: Sources
) -> tuple[str, list[str]]:
    place = places.make(folder / "trial", sources)
    with _disk(place.folder / name, size_kb):
        first = run(place.line(RUN), place.folder / "first")
        return f"{size_kb} kB for {name}: ends with {first.code}", _then(place, name, first, expected)


def fills_up(
    name: str, draw: random.Random, expected: Mapping[str, Any], folder: Path, sources: Sources
) -> tuple[str, list[str]]:
    """The disk has room at first; after some of the results it has little left."""
    place = places.make(folder / "trial", sources)
    published = draw.randrange(len(expected))
    left_kb = round(4 * 2 ** draw.uniform(0, 7))
    with _disk(place.folder / name, ROOM_KB):
        first = start(place.line(RUN), place.folder / "first")
        while place.num_published() < published and not first.has_ended():
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.5))
        _resize(place.folder / name, _used_kb(place.folder / name) + left_kb)
        first.wait()
        told = f"{left_kb} kB left for {name} after {published} results: ends with {first.code}"
        return told, _then(place, name, first, expected)


def _then(place: Place, name: str, first: Running, expected: Mapping[str, Any]) -> list[str]:
    found = [f"on the full disk: {line}" for line in unclear(first)]
    if first.code and not any(CLEAR.search(line) for line in first.said.splitlines()):
        found.append(f"nothing says that the disk is full: {last_line(first)}")
    _resize(place.folder / name, ROOM_KB)
    again = run(place.line(RUN), place.folder / "again")
    if again.code != 0:
        found.append(f"with room, the same line ends with {again.code}: {last_line(again)}")
    found += [f"with room: {line}" for line in unclear(again)]
    return found + apart(lambda: places.faults(place, expected))


def can_mount() -> bool:
    return os.geteuid() == 0
