"""Reads the header of a model's or data set's card (README.md): the licence, and which files are which split."""

from __future__ import annotations

from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

import yaml

from stages.contracts import UserError

UNKNOWN = "unknown"


def _header(readme: Path) -> dict[str, Any]:
    """Returns the front matter; empty if there is none. Raises ValueError, YAMLError or OSError for one that cannot be
    read."""
    if not readme.exists():
        return {}
    from huggingface_hub import metadata_load

    return metadata_load(readme) or {}


def configs_in(readme: Path) -> list[dict[str, Any]]:
    """Returns the `configs` of a data set's card that state where its files are; empty if there are none. Raises
    UserError for a card that cannot be read, since it might have some."""
    try:
        found = _header(readme).get("configs")
    except (ValueError, yaml.YAMLError, OSError) as error:
        if readme.is_file() and not readme.read_bytes().lstrip(BOM_UTF8 + b" \r\n").startswith(b"---"):
            return []
        raise UserError(
            f"the header of {readme.parent.name}/{readme.name}, which may say where files lie, cannot be read: {error}",
            "data.path",
        ) from None
    entries = found if isinstance(found, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and ("data_files" in entry or "data_dir" in entry)]


def license_in(readme: Path) -> str:
    """Returns the `license` of the card's front matter; `unknown` if there is no card, or it does not say."""
    try:
        stated = _header(readme).get("license")
    except (ValueError, yaml.YAMLError, OSError):
        return UNKNOWN
    if isinstance(stated, list):
        return ", ".join(str(one) for one in stated)
    return str(stated or UNKNOWN)
