"""Checkpoints of a stage on disk, which survive a power cut and whose damage is detected.

A sealed folder holds, beside its files, `seal.json` with the digest of each; it gets its name by one rename, after all
of it was synced.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

SEAL = "seal.json"
WRITING = "writing"


def begin(parent: Path) -> Path:
    """Returns an empty folder in which a checkpoint is written until `finish` names it."""
    writing = parent / WRITING
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    return writing


def finish(writing: Path, place: Path) -> None:
    """Seals the contents and moves the folder to `place`, in the same parent folder."""
    digests = {path.name: digest(path) for path in sorted(writing.iterdir())}
    (writing / SEAL).write_text(json.dumps(digests), encoding="utf-8")
    for path in (*writing.iterdir(), writing):
        sync(path)
    writing.rename(place)
    sync(place.parent)


def damage(folder: Path) -> str:
    """Returns what is wrong with a sealed folder, in a few words; empty if it is unchanged."""
    try:
        digests = json.loads((folder / SEAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{SEAL} cannot be read"
    if not isinstance(digests, dict):
        return f"{SEAL} holds no list of files"
    there = {path.name for path in folder.iterdir()} - {SEAL}
    if odd := sorted(there ^ digests.keys()):
        return f"{odd[0]} is {'missing' if odd[0] in digests else 'none of its files'}"
    return next((f"{name} was changed" for name in digests if digest(folder / name) != digests[name]), "")


def digest(path: Path) -> str:
    """Returns the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Makes a file's contents, or a folder's names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
