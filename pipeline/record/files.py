"""How records get onto disk: whole, and without names and passwords."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.credentials import public_values
from pipeline.disk import replace_text


def write_json(value: Any, path: Path) -> None:
    """Makes the folder if there is none; a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(public_values(value), indent=1))
