"""engine.json: the contents of an engine folder, and checks of them. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.errors import EngineError

FORMAT: Literal["squarehead-engine-1"] = "squarehead-engine-1"
RECORD = "engine.json"
WEIGHTS = "model.safetensors"


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class LinearRecord(_Facts):
    rows: int = Field(ge=1)
    columns: int = Field(ge=1)
    dtype: Literal["fp32", "bf16", "int8"]
    layout: Literal["bitmask", "dense"]
    nnz: int = Field(ge=0)
    """Number of non-zeros."""
    bytes: int = Field(ge=0)
    """Bytes of values, bitmask, row offsets and scales."""


class FileRecord(_Facts):
    bytes: int
    sha256: str


class EngineRecord(_Facts):
    format: Literal["squarehead-engine-1"] = FORMAT
    dtype: str
    """Data type of the linears; if they differ, all of them, `fp32+int8`."""
    head: str
    """Data type of the head's product; fp32 if the head is not an engine linear."""
    linears: dict[str, LinearRecord]
    """Linears by dotted name, including the head if it is one."""
    files: dict[str, FileRecord] = {}
    """All other files of the folder: a changed config.json would change the model as much as changed weights."""


def write(folder: Path, record: EngineRecord) -> None:
    """Lists and digests the files of the folder, syncs them, and writes engine.json, last."""
    files = {path.name: _file(path) for path in sorted(folder.iterdir()) if path.name != RECORD}
    facts = record.model_copy(update={"files": files}).model_dump()
    text = json.dumps({**facts, "digest": _digest(facts)}, indent=1)
    (folder / RECORD).write_text(text, encoding="utf-8")
    mode = (folder / RECORD).stat().st_mode
    for path in folder.iterdir():
        path.chmod(mode)  # safetensors writes files that only their owner may read
        fsync(path)
    fsync(folder)


def read(folder: Path) -> EngineRecord:
    """Reads engine.json. Raises EngineError if there is none, if it is damaged, or of another version."""
    try:
        facts = json.loads((folder / RECORD).read_bytes())
        digest = facts.pop("digest")
    except FileNotFoundError:
        hint = "expected a folder that `python -m engine export` has written"
        raise EngineError(f"there is no {RECORD} in {folder}; {hint}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(folder, f"{RECORD} cannot be read ({type(error).__name__})") from None
    if facts.get("format") != FORMAT:
        raise EngineError(
            f"{folder} has the format {facts.get('format')!r}, expected {FORMAT!r}; export it again with this version"
        )
    if digest != _digest(facts):
        raise _damaged(folder, f"the digest of {RECORD} is not the recorded one")
    try:
        return EngineRecord.model_validate(facts)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise _damaged(folder, f"{RECORD}: {where}: {first['msg']}") from None


def verify_sizes(folder: Path, record: EngineRecord) -> None:
    """Raises EngineError for the first file that is missing or truncated."""
    if WEIGHTS not in record.files:
        raise _damaged(folder, f"{RECORD} does not list {WEIGHTS}")
    for name, expected in record.files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise _damaged(folder, f"{name} is missing")
        if (size := path.stat().st_size) != expected.bytes:
            raise _damaged(folder, f"{name} has {size} bytes, expected {expected.bytes}")


def verify(folder: Path, record: EngineRecord) -> None:
    """Compares contents: raises EngineError for the first file that is not the recorded one. Reads all of them."""
    verify_sizes(folder, record)
    for name, expected in record.files.items():
        if _file(folder / name) != expected:
            raise _damaged(folder, f"the sha256 of {name} is not the recorded one")


def fsync(path: Path) -> None:
    """Makes a file's contents, or a folder's names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _file(path: Path) -> FileRecord:
    with path.open("rb") as file:
        return FileRecord(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _digest(facts: dict[str, Any]) -> str:
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _damaged(folder: Path, reason: str) -> EngineError:
    return EngineError(f"{folder} is damaged: {reason}; export it again")
