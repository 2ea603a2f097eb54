"""The C++ sources of the kernels and the library built from them. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import importlib.machinery
import os
from pathlib import Path

NATIVE = Path(__file__).parent / "native"


def library() -> Path | None:
    """Returns the extension that the package's build left beside this module; None if there was no C++ compiler.

    The environment variable SQUAREHEAD_KERNELS names another build of the same sources: `make sanitize` tests its own
    that way.
    """
    if named := os.environ.get("SQUAREHEAD_KERNELS"):
        return Path(named)
    candidates = (Path(__file__).parent / f"_kernels{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return next((path for path in candidates if path.exists()), None)


def digest() -> str:
    """Returns the sha256 over names and contents, its first 16 digits; empty if the sources are not installed."""
    files = sorted(NATIVE.glob("*.cpp")) + sorted(NATIVE.glob("*.h"))
    if not files:
        return ""
    whole = hashlib.sha256()
    for path in files:
        whole.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return whole.hexdigest()[:16]
