"""Adds, parses and checks options of the measuring commands. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from engine.errors import EngineError

T = TypeVar("T")


def add_shared(parser: argparse.ArgumentParser, rounds: int) -> None:
    for name, default, what in (("--threads", 1, "of every contender"), ("--rounds", rounds, "measured")):
        parser.add_argument(name, type=int, default=default, metavar="N", help=f"{what} (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE.json", help="all figures")


def check_least(args: argparse.Namespace, least: int, *names: str) -> None:
    for name in names:
        value = getattr(args, name)
        if value is not None and value < least:
            raise EngineError(f"--{name.replace('_', '-')} is {value}, expected at least {least}")


def check_out(out: Path | None) -> None:
    """Checks the output file before anything is measured."""
    if out is not None and (out.is_dir() or not out.resolve().parent.is_dir()):
        raise EngineError(f"--json is {out}, expected a file in a folder that is there")


def choose(option: str, text: str, known: tuple[str, ...]) -> list[str]:
    """Returns the listed ones, once each, or all."""
    names = [name.strip() for name in text.split(",")]
    if names == ["all"]:
        return list(known)
    for name in names:
        if name not in known:
            raise EngineError(f"--{option} has {name!r}, expected all or some of: {', '.join(known)}")
    return list(dict.fromkeys(names))


def parse_list(option: str, text: str, parse: Callable[[str], T], expected: str) -> list[T]:
    """Returns each part once. `parse` raises ValueError for a part that is not `expected`."""
    found = []
    for part in text.split(","):
        try:
            found.append(parse(part.strip()))
        except ValueError:
            raise EngineError(f"--{option} has {part.strip()!r}, expected {expected}") from None
    return list(dict.fromkeys(found))
