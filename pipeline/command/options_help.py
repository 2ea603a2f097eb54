"""The options of all groups, each with the comment that its file begins with, as `--help` shows them."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

NAME_WIDTH, LINE_WIDTH = 24, 120


def group_options() -> str:
    """Of the configuration's folder and of the user's own (`--config-dir`, `hydra.searchpath`)."""
    found: dict[str, dict[str, str]] = {}
    for folder in config_folders():
        for path in sorted(folder.rglob("*.yaml")):
            group, _, option = path.relative_to(folder).with_suffix("").as_posix().partition("/")
            if option and group != "hydra":
                found.setdefault(group, {}).setdefault(option, first_comment(path))
    lines = []
    for group, options in sorted(found.items()):
        lines += ["", f"{group}:", *(_entry(name, comment) for name, comment in options.items())]
    return "\n".join(lines).strip()


def _entry(name: str, comment: str) -> str:
    indent = " " * (NAME_WIDTH + 3)
    return textwrap.fill(
        f"  {name:{NAME_WIDTH}} {comment}", LINE_WIDTH, subsequent_indent=indent, break_on_hyphens=False
    )


def config_folders() -> Iterator[Path]:
    for source in HydraConfig.get().runtime.config_sources:
        if source.schema == "file" and source.path and Path(source.path).is_dir():
            yield Path(source.path)


def first_comment(path: Path) -> str:
    """The first sentence of the comment at the head of a file; empty if there is none. `# @package` is Hydra's."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    said = " ".join(line.lstrip("# ") for line in comment if not line.startswith("# @package"))
    return re.split(r"(?<=\.)\s", said)[0]
