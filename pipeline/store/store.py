"""The content-addressed store: a folder for each result, published whole by one rename or not at all.

root/<stage>/<first 16 hex of the fingerprint>/   the result: read-only files, and meta.json, written last
root/.scratch/<stage>-<16 hex>/                   out: being filled; resume: checkpoints that survive a kill;
                                                  resume.json: what those were made of; progress.json: how far
root/.locks/<stage>-<16 hex>.lock                 held while a process works there
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from filelock import Timeout

from pipeline import disk
from pipeline.store import record
from stages.contracts import CURVES, Artifact, UserError

A = TypeVar("A", bound=Artifact)

SHORT = 16
"""Hex digits of a fingerprint in the names of folders; meta.json holds all 64."""
PROGRESS = "progress.json"
RESUME, RESUMES = "resume", "resume.json"
"""Checkpoints, and what they were made of."""


@dataclass(frozen=True)
class Entry:
    """A published result."""

    stage: str
    fingerprint: str
    path: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        """Returns what `pipeline.run` writes (stage, version, fingerprint, config, inputs, ...), and `files`."""
        found: dict[str, Any] = json.loads((self.path / record.META).read_text(encoding="utf-8"))
        return found

    @cached_property
    def content(self) -> str:
        """Returns a digest of its files except the curves, which contain times: equal for two results made alike."""
        held = sorted((name, facts["sha256"]) for name, facts in self.meta["files"].items() if name != CURVES)
        return hashlib.sha256(json.dumps(held).encode("ascii")).hexdigest()[:SHORT]

    def artifact(self, kind: type[A]) -> A:
        return kind(self.path, self.fingerprint)


class Store:
    """A folder of results. `option` is the configuration key that names the folder, for error messages."""

    def __init__(self, root: Path, option: str = "runs") -> None:
        self.root = Path(root)
        self.option = option

    def find(self, stage: str, fingerprint: str) -> Entry | None:
        """Returns the published result if all its files are there in their sizes. `verify` checks their contents.

        Raises UserError if another result, whose fingerprint begins alike, has its folder.
        """
        path = self.folder(stage, fingerprint)
        if not path.is_dir() or self.damage(stage, fingerprint):
            return None
        return Entry(stage, fingerprint, path)

    def damage(self, stage: str, fingerprint: str) -> str:
        """Returns in one line which file of a published result is missing or has the wrong size; "" if none, or if
        there is no result."""
        path = self.folder(stage, fingerprint)
        trouble = record.damage(path)
        there = "" if trouble else record.read(path).get("fingerprint", "")
        if there and there != fingerprint:
            raise UserError(
                f"{path} holds the result {there}, whose first {SHORT} digits are also those of {fingerprint}; "
                "move it away or use another folder",
                self.option,
            )
        return trouble

    def corruption(self, entry: Entry) -> str:
        """Returns in one line which file of a result differs from its recorded digest; "" if none. Reads the files,
        once in a process, before they are used."""
        return record.check_contents(entry.path)

    def tidy(self, stage: str, fingerprint: str) -> None:
        """Deletes what a kill right after publication left of a result that is there."""
        key = _key(stage, fingerprint)
        if self._scratch(key).exists():
            with suppress(Timeout, OSError), disk.locked(self._lock(key), None):
                disk.delete(self._scratch(key))

    def entries(self, stage: str | None = None) -> Iterator[Entry]:
        """Yields published results whose meta.json is whole, by stage and fingerprint."""
        for path in self.folders(stage):
            if meta := record.read(path):
                yield Entry(path.parent.name, meta["fingerprint"], path)

    def newest(self, stage: str, count: int) -> Iterator[Entry]:
        """Returns at most `count` results of a stage, those published last; the others are not read."""
        folders = sorted(self.folders(stage), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in folders[:count]:
            if meta := record.read(path):
                yield Entry(path.parent.name, meta["fingerprint"], path)

    def folders(self, stage: str | None = None) -> Iterator[Path]:
        """Yields the folders of published results, damaged ones included."""
        for place in sorted(self.root.glob(stage or "[!.]*")):
            yield from sorted(path for path in place.glob("[0-9a-f]" * SHORT) if path.is_dir())

    @contextmanager
    def fill(
        self, stage: str, fingerprint: str, waiting: Callable[[str], None], replace: bool = False
    ) -> Iterator[Slot]:
        """Yields a slot for this result, under its lock. If another process has that, calls `waiting` once with its
        holder.

        If `slot.entry` is set there is nothing to do: the result is there; with `replace`, another process made it anew
        while we waited. If the body does not publish, only `slot.resume` stays. Raises UserError if the disk is full,
        in the body or in publishing.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {self.root}: {error.strerror}", self.option) from error
        old = self.find(stage, fingerprint) if replace else None
        to_replace = old.meta if old else None  # read now: it may give way while we wait
        try:
            with disk.locked(self._lock(_key(stage, fingerprint)), waiting) as waited:
                there = self.find(stage, fingerprint)
                is_new = there is not None and waited and there.meta != to_replace
                slot = Slot(self, stage, fingerprint, there if is_new or not replace else None)
                try:
                    yield slot
                finally:
                    slot.close()
        except PermissionError as error:
            if not str(error.filename).startswith(str(self.root)):
                raise
            raise UserError(
                f"cannot write {error.filename}: {error.strerror}; where several users share a store, its folders need "
                "one group and the setgid bit, and every user `umask 002`",
                self.option,
            ) from error
        except Exception as error:
            if not disk.is_full(error):
                raise
            raise UserError(
                f"the disk of {self.root} is full ({disk.format_bytes(shutil.disk_usage(self.root).free)} free without "
                f"the unfinished {stage}, which was deleted); make room, with `python -m pipeline.store gc` for one, "
                "or set a folder on another disk",
                self.option,
            ) from error

    def scratch(self) -> Iterator[Path]:
        """Returns the scratch folders that no process works in: remains of kills and failures."""
        for path in sorted(self.root.glob(".scratch/*")):
            if not disk.is_held(self._lock(path.name)):
                yield path

    def remove(self, path: Path) -> bool:
        """Deletes the folder of a result, or something in scratch. Returns False if a process works there.

        A kill in the middle leaves the rest in scratch, never half a result.
        """
        inside = path.relative_to(self.root).parts
        scratched = inside[0] == ".scratch"
        key = inside[1] if scratched else "-".join(inside)
        try:
            with disk.locked(self._lock(key), None):
                doomed = path
                if not scratched and path.exists():
                    doomed = self._scratch(key) / "old"
                    disk.delete(doomed)
                    doomed.parent.mkdir(parents=True, exist_ok=True)
                    path.rename(doomed)
                disk.delete(doomed)
                if doomed.parent == self._scratch(key) and not any(doomed.parent.iterdir()):
                    doomed.parent.rmdir()
                # while it is held: whoever waits for it sees that it has no name any more, and takes a new one
                self._lock(key).unlink(missing_ok=True)
        except Timeout:
            return False
        return True

    def is_stored(self, stage: str, fingerprint: str) -> bool:
        """Returns whether there is a result, damaged or not: faster than `find`, for displays."""
        return (self.folder(stage, fingerprint) / record.META).exists()

    def progress(self, stage: str, fingerprint: str) -> Path:
        """Returns the file in which a process that makes this result writes its progress."""
        return self._scratch(_key(stage, fingerprint)) / PROGRESS

    def folder(self, stage: str, fingerprint: str) -> Path:
        """Returns the folder where the result is, or would be."""
        return self.root / stage / fingerprint[:SHORT]

    def _scratch(self, key: str) -> Path:
        return self.root / ".scratch" / key

    def _lock(self, key: str) -> Path:
        return self.root / ".locks" / f"{key}.lock"


class Slot:
    """The place of a result that is being made. Exists while the lock is held."""

    def __init__(self, store: Store, stage: str, fingerprint: str, entry: Entry | None) -> None:
        self._stage = stage
        self._fingerprint = fingerprint
        self._place = store.folder(stage, fingerprint)
        self._scratch = store._scratch(_key(stage, fingerprint))
        self._old = self._scratch / "old"
        self.out = self._scratch / "out"
        """The folder to fill; empty at the start."""
        self.resume = self._scratch / RESUME
        """Survives kills and failures; deleted once the result is published."""
        self.progress = self._scratch / PROGRESS
        """How far it is, for those who watch (`pipeline.progress`)."""
        self.entry = entry
        """The published result, if there is nothing to do (any more)."""
        self._resumes = self._scratch / RESUMES
        if entry is None:
            disk.delete(self.out)
            disk.delete(self._old)
            self.out.mkdir(parents=True)
            self.resume.mkdir(exist_ok=True)

    def resume_from(self, made_of: Mapping[str, Any], anew: bool) -> None:
        """Deletes checkpoints of a killed attempt that was made from something else and would give another result. With
        `anew` also those of an attempt that was not itself begun anew."""
        record = {"made_of": dict(made_of), "anew": anew}
        try:
            before = json.loads(self._resumes.read_bytes())
        except (OSError, ValueError):
            before = {}
        if not isinstance(before, dict):
            before = {}
        if before.get("made_of") != record["made_of"] or (anew and not before.get("anew")):
            disk.delete(self.resume)
            self.resume.mkdir()
        if before != record:
            disk.fsync(disk.replace_text(self._resumes, json.dumps(record)))
            disk.fsync(self._scratch)

    def publish(self, meta: Mapping[str, Any]) -> Entry:
        """Seals `out` (the list of its files goes into meta.json) and moves it into its place in one step.

        Replaces a result that is already there.
        """
        if (meta["stage"], meta["fingerprint"]) != (self._stage, self._fingerprint):
            raise ValueError(f"meta of {meta['stage']} {meta['fingerprint']} in the slot of another result")
        record.seal(self.out, meta)
        self._place.parent.mkdir(parents=True, exist_ok=True)
        if self._place.exists():
            disk.replace_folder(self.out, self._place, aside=self._old)
        else:
            self.out.rename(self._place)
        disk.fsync(self._place.parent)
        disk.fsync(self._place.parent.parent)
        self.entry = Entry(self._stage, self._fingerprint, self._place)
        record.remember_whole(self._place)
        return self.entry

    def close(self) -> None:
        """Deletes what was not published; checkpoints stay until the result is published."""
        disk.delete(self.out)
        disk.delete(self.progress)
        if self.entry or not any(self._scratch.glob(f"{RESUME}/*")):
            disk.delete(self._scratch)


def _key(stage: str, fingerprint: str) -> str:
    return f"{stage}-{fingerprint[:SHORT]}"
