"""Explains errors of the operating system outside of a stage, in one line that names the option to change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.disk import format_bytes, free_bytes, is_full
from stages.contracts import UserError

FOLDERS = {
    "runs": "runs",
    "cache.folder": "",
    "hydra.run.dir": "",
    "hydra.sweep.dir": "",
    "data.path": "",
    "model.path": "",
}
"""Options that name folders, and their defaults below the working directory."""


def explained(error: OSError, arguments: Sequence[str]) -> UserError:
    """Returns the error in one line. The command line's `arguments` identify the option whose folder the path of the
    error lies in."""
    path = Path(str(error.filename)) if error.filename else None
    option = _option(path, arguments) if path else "runs"
    reason = error.strerror or str(error)
    where = f" {path}" if path else ""
    if is_full(error):
        free = format_bytes(free_bytes(path)) if path else "nothing"
        return UserError(f"the disk is full at{where} ({free} free); make room, or set a folder elsewhere", option)
    return UserError(f"cannot use{where}: {reason}; set a folder that can be written", option)


def _option(path: Path, arguments: Sequence[str]) -> str:
    here = path.absolute()
    chosen = {option: Path(default).absolute() for option, default in FOLDERS.items() if default}
    for argument in arguments:
        option, _, value = argument.lstrip("+").partition("=")
        if option in FOLDERS and value:
            chosen[option] = Path(value.strip("'\"")).expanduser().absolute()
    inside = [
        option
        for option, folder in chosen.items()
        if here == folder or folder in here.parents or here in folder.parents
    ]
    return max(inside, key=lambda option: len(str(chosen[option])), default="runs")
