"""Lists the choices of all groups, each with the comment at the head of its file, for `--help`."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from pipeline.command.conf_files import first_comment

NAME_WIDTH, LINE_WIDTH = 24, 120


def group_options() -> str:
    """Lists the choices in the configuration's folder and in the user's own (`--config-dir`, `hydra.searchpath`)."""
    found: dict[str, dict[str, str]] = {}
    for folder in config_folders():
        for path in sorted(folder.rglob("*.yaml")):
            group, _, option = path.relative_to(folder).with_suffix("").as_posix().partition("/")
            if option and group != "hydra":
                found.setdefault(group, {}).setdefault(option, _first_sentence(path))
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


def _first_sentence(path: Path) -> str:
    return re.split(r"(?<=\.)\s", first_comment(path.read_text(encoding="utf-8")))[0]
