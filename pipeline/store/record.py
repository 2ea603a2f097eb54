"""Writes and checks meta.json, which lists what the folder of a result holds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline import disk
from pipeline.record.files import sealed, unsealed

META = "meta.json"


def seal(folder: Path, meta: Mapping[str, Any]) -> None:
    """Makes all files read-only and durable, and writes meta.json, last, with their list and its own digest.

    Raises ValueError for what a result may not hold: links and other things that are not files, and a meta.json.
    """
    files = {}
    for path in sorted(disk.files_below(folder)):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not path.is_file() or name == META:
            raise ValueError(f"a result may not hold {name}: {'reserved' if name == META else 'not a plain file'}")
        path.chmod(disk.READ_ONLY)
        files[name] = {"bytes": path.stat().st_size, "sha256": disk.sha256(path)}
        disk.fsync(path)
    record = folder / META
    record.write_text(json.dumps(sealed({**meta, "files": files}), indent=1), encoding="utf-8")
    record.chmod(disk.READ_ONLY)
    disk.fsync(record)
    disk.fsync_tree(folder)


def read(folder: Path) -> dict[str, Any]:
    """Reads the meta.json of a folder; empty if it is missing, corrupted or belongs to another folder."""
    try:
        recorded = json.loads((folder / META).read_bytes())
        meta = unsealed(recorded) if "digest" in recorded else {}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    is_of_this_folder = meta and meta["stage"] == folder.parent.name and meta["fingerprint"].startswith(folder.name)
    return meta if is_of_this_folder else {}


def damage(folder: Path) -> str:
    """Compares list and sizes. Returns one line for the first file that is missing or has the wrong size; "" if there
    is none."""
    return next(iter(_of_stable_folder(folder, _by_size)), "")


def check_contents(folder: Path, endings: tuple[str, ...] = ("",)) -> str:
    """Compares contents before the files (those with such names) are used. Returns one line for the first that differs
    from its recorded digest; "" if there is none. Skips files that this process has read before and that were not
    touched since."""
    for name, facts in read(folder).get("files", {}).items():
        path = folder / name
        if not name.endswith(endings):
            continue
        try:
            stat = path.stat()
            state = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, facts["sha256"])
            if state in _read_whole:
                continue
            if disk.sha256(path) != facts["sha256"]:
                return f"{name} is corrupted: its sha256 is not the recorded one"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        _read_whole.add(state)
    return ""


def remember_whole(folder: Path) -> None:
    """Marks the files of a result that this process has just sealed as read, so that they are not read again."""
    for name, facts in read(folder).get("files", {}).items():
        stat = (folder / name).stat()
        _read_whole.add((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, facts["sha256"]))


_read_whole: set[tuple[int, int, int, int, str]] = set()
"""Files whose contents this process has compared: device, inode, size, time of change, digest."""


def verify(folder: Path, progress: Callable[[int], None] = lambda count: None) -> list[str]:
    """Compares contents. Returns one line for each file that is missing, corrupted or unexpected.

    Calls `progress` with the number of bytes of each chunk read.
    """
    return _of_stable_folder(folder, lambda stable: _by_contents(stable, progress))


def _of_stable_folder(folder: Path, check: Callable[[Path], list[str]]) -> list[str]:
    """Repeats a check if the folder was replaced meanwhile, which would compare an old list with new files.

    Holds the folder open meanwhile, so that no later one can get the number of its inode.
    """
    while True:
        try:
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return []
        try:
            found = check(folder)
            if not found or _is_at(folder, held):
                return found
        finally:
            os.close(held)


def _is_at(folder: Path, held: int) -> bool:
    try:
        return os.path.samestat(folder.stat(), os.fstat(held))
    except FileNotFoundError:
        return False


def _by_size(folder: Path) -> list[str]:
    meta = read(folder)
    if not meta:
        return [f"{META} is missing or corrupted"]
    found = []
    for name, recorded in meta["files"].items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif (size := path.stat().st_size) != recorded["bytes"]:
            found.append(f"{name} has {size} bytes, not {recorded['bytes']}")
    return found


def _by_contents(folder: Path, progress: Callable[[int], None]) -> list[str]:
    found = _by_size(folder)
    recorded = read(folder).get("files", {})
    for name, facts in recorded.items():
        try:
            if (folder / name).stat().st_size == facts["bytes"] and disk.sha256(folder / name, progress) != facts[
                "sha256"
            ]:
                found.append(f"{name} is corrupted: its sha256 is not the recorded one")
        except FileNotFoundError:
            continue  # `found` has it
        except OSError as error:
            found.append(f"{name} cannot be read: {error.strerror}")
    if recorded:
        there = {path.relative_to(folder).as_posix() for path in disk.files_below(folder)}
        found += [f"{name} does not belong to this result" for name in sorted(there - set(recorded) - {META})]
    return found
