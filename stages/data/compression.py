"""Opens files of data, compressed or not."""

from __future__ import annotations

import importlib.util
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from stages.contracts import UserError

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")


@contextmanager
def unpacked(file: Path) -> Iterator[IO[bytes]]:
    """Opens a file, decompressed according to its suffix. Raises UserError for a damaged one."""
    import fsspec
    from fsspec.utils import infer_compression

    if file.suffix in COMPRESSIONS and infer_compression(file.name) is None:
        raise UserError(
            f"{file.name}: reading {file.suffix} needs the package zstandard, or unpack the file", "data.path"
        )
    try:
        with fsspec.open(str(file), "rb", compression="infer") as content:
            yield content
    except _damage_errors() as error:
        raise UserError(f"{file.name} cannot be read: {error}", "data.path") from None


def _damage_errors() -> tuple[type[Exception], ...]:
    """Returns what a damaged file raises, in the libraries that unpack it."""
    found: list[type[Exception]] = [OSError, EOFError, ValueError, zlib.error, lzma.LZMAError]
    if importlib.util.find_spec("zstandard"):
        found.append(importlib.import_module("zstandard").ZstdError)
    return tuple(found)
