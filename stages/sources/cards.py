"""The licence that a model's or data set's card (README.md) states."""

from __future__ import annotations

from pathlib import Path

UNKNOWN = "unknown"


def license_in(readme: Path) -> str:
    """The `license` of the card's front matter; `unknown` if there is no card, or it does not say."""
    if not readme.exists():
        return UNKNOWN
    from huggingface_hub import metadata_load

    try:
        stated = (metadata_load(readme) or {}).get("license")
    except ValueError:  # front matter that is no mapping: no card as the hub knows it
        return UNKNOWN
    if isinstance(stated, list):
        return ", ".join(str(one) for one in stated)
    return str(stated or UNKNOWN)
