"""Writes and reads record files: complete, sealed against changes, and without names and passwords."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.credentials import public_values
from pipeline.disk import replace_text

OLD_KEYS = {"dials": "swept_parameters"}
"""Keys of a job's record, in job.json and sweep.json, by their names in earlier versions."""


def write_json(value: Any, path: Path) -> None:
    """Writes a JSON file, with its folder. A reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(public_values(value), indent=1))


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; empty if the file is missing, cannot be read, or holds something else."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def with_current_keys(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the record of a job with the names that its keys have now; earlier versions wrote others."""
    return {OLD_KEYS.get(key, key): value for key, value in record.items()}


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the record as it will be read back, with a digest of itself."""
    # read back before it is digested, so that a tuple or an integer key cannot make a difference
    plain = json.loads(json.dumps(record))
    return {**plain, "digest": _digest(plain)}


def unsealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the record without its digest. Raises ValueError if it has one and was changed since."""
    plain = {key: value for key, value in record.items() if key != "digest"}
    if "digest" in record and record["digest"] != _digest(plain):
        raise ValueError("it was changed after it was written")
    return plain


def _digest(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()
