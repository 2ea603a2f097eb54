"""The words of the command line before Hydra reads them."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Sequence

from pipeline import CONF, credentials
from stages.contracts import UserError

PROGRAM = "squarehead"
"""Name of the command in usage and shell completion, however it was started."""

NO_NAME = re.compile(r"null|true|false|[-+]?\d[\d_.e+-]*", re.IGNORECASE)
"""A value that Hydra reads as something else than the name of a file."""


def prepare(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments without credentials and with `-m` first: Hydra accepts it only there or after all
    options."""
    sweeps = [word for word in arguments if word in ("-m", "--multirun")][:1]
    rest = [word for word in arguments if word not in ("-m", "--multirun")]
    return credentials.withdraw_from([*sweeps, *rest])


def check_groups(words: Sequence[str]) -> None:
    """Raises UserError for a group whose choice is no name, as `task=null`: Hydra would fail with a traceback."""
    for word in words:
        key, _, choices = word.lstrip("+").partition("=")
        group = key.partition("@")[0]
        if "." in group or not (group.startswith("hydra/") or (CONF / group).is_dir()):
            continue
        for choice in map(str.strip, choices.split(",")):
            if NO_NAME.fullmatch(choice):
                raise UserError(f"{choice} is no file of this group; ~{key} leaves the group out", key)


def completes(arguments: Sequence[str]) -> bool:
    """Returns whether a shell asks for completions of an unfinished command line."""
    return bool({"-sc", "--shell-completion"} & set(arguments)) and any(word.startswith("query=") for word in arguments)


def version() -> str:
    found = {name: importlib.metadata.version(name) for name in ("squarehead", "hydra-core")}
    return f"squarehead {found['squarehead']} (Hydra {found['hydra-core']})"
