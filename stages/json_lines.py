"""JSON Lines files: one JSON value a line, and a line ends at a newline and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a file.

    `str.splitlines` must not cut such a file: it also ends a line at U+2028, U+0085 and other characters that a JSON
    string may contain.
    """
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
