"""The source code of this interpreter's own library: Python text that is available everywhere (PSF-2.0).

Another version of Python has other files, so its identity covers their bytes.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

PATH = "python:stdlib"
LICENSE = "PSF-2.0"
LEFT_OUT = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "ensurepip", "encodings", "pydoc_data",
     "__pycache__"}
)  # fmt: skip
"""Folders of tests, of packages that are not the library's own, and of tables."""


def files() -> list[Path]:
    """Returns its modules, sorted by name."""
    found: list[Path] = []
    for parent, folders, names in os.walk(folder()):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        found += [Path(parent, name) for name in names if name.endswith(".py")]
    return sorted(found)


def folder() -> Path:
    return Path(sysconfig.get_path("stdlib"))
