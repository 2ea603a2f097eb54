"""Remembers what is slow or impossible to determine again, file digests and the commits behind hub names, in one JSON
file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from stages.contracts import UserError
from stages.sources.packages import cache_folder


def recall(kind: str) -> dict[str, Any]:
    """Returns the remembered values of a kind (`digests`, `commits`)."""
    found: dict[str, Any] = _read().get(kind, {})
    return found


def remember(kind: str, values: Mapping[str, Any]) -> None:
    """Adds values under a lock, so that jobs which plan at once lose nothing."""
    if not values:
        return
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        everything = _read()
        everything[kind] = {**everything.get(kind, {}), **values}
        if kind == "digests":
            everything[kind] = {name: value for name, value in everything[kind].items() if os.path.exists(name)}
        scratch = path.with_suffix(".partial")
        sealed = {"sha256": _digest(everything), "values": everything}
        scratch.write_text(json.dumps(sealed, indent=1, sort_keys=True), encoding="utf-8")
        scratch.replace(path)


def _path() -> Path:
    return cache_folder() / "remembered.json"


def _read() -> dict[str, dict[str, Any]]:
    """Returns the file's values; empty if it is missing or damaged, since all of them can be determined again."""
    try:
        kept = dict(json.loads(_path().read_text(encoding="utf-8")))
        if "sha256" not in kept:  # of an earlier version
            return kept
        values: dict[str, dict[str, Any]] = kept["values"]
        return values if kept["sha256"] == _digest(values) else {}
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return {}
    except OSError as error:
        raise UserError(f"cannot read {_path()}: {error.strerror or error}", "cache.folder") from None


def _digest(values: Mapping[str, Any]) -> str:
    """Returns a digest of the values, since a changed digit here would give a source another identity."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode("ascii")).hexdigest()
