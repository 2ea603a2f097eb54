"""What a model's or data set's card (README.md) states in its header: the licence, and which files are which split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

UNKNOWN = "unknown"


def _header(readme: Path) -> dict[str, Any]:
    if not readme.exists():
        return {}
    from huggingface_hub import metadata_load

    try:
        return metadata_load(readme) or {}
    except ValueError:  # front matter that is no mapping: no card as the hub knows it
        return {}


def configs_in(readme: Path) -> list[dict[str, Any]]:
    """The `configs` of a data set's card that say where its files lie; empty where none does."""
    found = _header(readme).get("configs")
    entries = found if isinstance(found, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and ("data_files" in entry or "data_dir" in entry)]


def license_in(readme: Path) -> str:
    """The `license` of the card's front matter; `unknown` if there is no card, or it does not say."""
    stated = _header(readme).get("license")
    if isinstance(stated, list):
        return ", ".join(str(one) for one in stated)
    return str(stated or UNKNOWN)
