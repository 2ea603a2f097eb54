"""Explains a failure in one line; the traceback of a bug goes into a file."""

from __future__ import annotations

import traceback
from pathlib import Path

from pipeline.credentials import public
from stages.contracts import Stopped, UserError


def explain(error: Exception, name: str, folder: Path) -> str:
    """Returns one line for an error. Writes the traceback of a bug (neither a UserError nor a system error) into
    `folder`, under `name`."""
    if isinstance(error, UserError | Stopped):
        return public(str(error))
    if isinstance(error, OSError) and error.errno:  # errors of a disk, a folder or a limit are not bugs
        where = f": {error.filename}" if error.filename else ""
        return public(f"{error.strerror or type(error).__name__}{where}")
    kept = folder / f"{name}.traceback.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(public("".join(traceback.format_exception(error))), encoding="utf-8")
        where = f" (traceback: {kept})"
    except OSError:
        where = ""
    return public(f"{type(error).__name__}: {' '.join(str(error).split())}") + where
