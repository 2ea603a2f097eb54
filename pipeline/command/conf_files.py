"""Reads the files of `conf/` one by one: which option each of them sets, without composing a configuration."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from pipeline import CONF

MAIN = "config.yaml"


@dataclass(frozen=True)
class ConfFile:
    group: str
    """Its folder in `conf/`: `distill`; empty for the main file."""
    option: str
    """Name that chooses it in that group: `kd`, `local/llm`."""
    values: dict[str, Any]
    """Dotted option -> the value that the file sets."""
    comment: str
    """First paragraph of the comment at the head of the file."""

    @property
    def choice(self) -> str:
        """Returns the argument that chooses this file: `distill=kd`."""
        return f"{self.group}={self.option}" if self.group else "conf/config.yaml"


@cache
def conf_files() -> tuple[ConfFile, ...]:
    """Returns the main file, then the files of all groups; Hydra's own options are left out."""
    found = [ConfFile("", "", dict(flatten(main_file())), "")]
    for path in sorted(CONF.glob("*/**/*.yaml")):
        group, _, option = path.relative_to(CONF).with_suffix("").as_posix().partition("/")
        if group == "hydra":
            continue
        text = path.read_text(encoding="utf-8")
        package = re.search(r"^# @package (\S+)", text)
        above = "" if package and package[1] == "_global_" else package[1] if package else group
        values = dict(flatten(yaml.safe_load(text) or {}, above))
        found.append(ConfFile(group, option, values, first_comment(text)))
    return tuple(found)


@cache
def main_file() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CONF / MAIN).read_text(encoding="utf-8"))
    return found


def default_choices() -> dict[str, str]:
    """Returns the option that the main file chooses for each group."""
    chosen = {}
    for entry in main_file()["defaults"]:
        for group, option in entry.items() if isinstance(entry, dict) else ():
            if option and not group.startswith("override "):
                chosen[group] = option
    return chosen


def defaults() -> dict[str, Any]:
    """Returns the default of each option, by dotted name. Interpolations are not resolved."""
    chosen = default_choices()
    main, *others = conf_files()
    values: dict[str, Any] = {}
    for file in others:
        if chosen.get(file.group) == file.option:
            values |= file.values
    return values | main.values


def flatten(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Returns the leaves by dotted name, without Hydra's own sections."""
    for name, value in values.items():
        if not above and name in ("defaults", "hydra"):
            continue
        key = f"{above}.{name}" if above else str(name)
        if isinstance(value, Mapping) and value:
            yield from flatten(value, key)
        elif name != "defaults":
            yield key, value


def first_comment(text: str) -> str:
    """Returns the comment at the head of a file, empty if there is none. `# @package` belongs to Hydra and is
    skipped."""
    comment = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.lstrip("# ") for line in comment if not line.startswith("# @package"))
