"""The words of the command line before Hydra reads them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

from pipeline import credentials

PROGRAM = "squarehead"
"""How usage and shell completion call the command, however it was started."""


def prepare(arguments: Sequence[str]) -> list[str]:
    """Returns the words without credentials and with `-m` first: Hydra takes it only there or after all options."""
    sweeps = [word for word in arguments if word in ("-m", "--multirun")][:1]
    rest = [word for word in arguments if word not in ("-m", "--multirun")]
    return credentials.withdraw_from([*sweeps, *rest])


def completes(arguments: Sequence[str]) -> bool:
    """Whether a shell asks for completions, in the middle of a line that is being typed."""
    return bool({"-sc", "--shell-completion"} & set(arguments)) and any(word.startswith("query=") for word in arguments)


def version() -> str:
    found = {name: importlib.metadata.version(name) for name in ("squarehead", "hydra-core")}
    return f"squarehead {found['squarehead']} (Hydra {found['hydra-core']})"
