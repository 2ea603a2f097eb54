"""Explains errors of a command line in one line: Hydra's message, its hints, and what was probably meant."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from pipeline import failures, os_errors
from pipeline.command import suggestions
from pipeline.credentials import public
from stages.contracts import UserError


class JobFailedError(Exception):
    """A node or job failed; the terminal has already said why."""


EXPECTED = (UserError, HydraException, OmegaConfBaseException, OSError, BrokenProcessPool)
"""Errors that are not bugs of ours. They are shown in one line, without a traceback."""
WORKER_KILLED = (
    "a worker of the launcher was killed, as systems do when memory runs out, and the others with it; finished stages "
    "are stored, the same command resumes"
)
HELP = "python -m pipeline --help lists groups and options"
QUOTE = """not in the form key=value (quote a value that holds = or other signs: 'key="value"')"""


def explain(error: BaseException) -> str:
    """Returns one line for an error of `EXPECTED`, given the command line that caused it."""
    return str(as_user_error(error, sys.argv[1:]))


def as_user_error(error: BaseException, overrides: Sequence[str]) -> UserError:
    """Returns an error of `EXPECTED` as a UserError of one line, without credentials. `overrides` identify the option
    whose folder a path lies in."""
    found = _explained(error, overrides)
    return UserError(public(found.message), found.option)


def _explained(error: BaseException, overrides: Sequence[str]) -> UserError:
    if isinstance(error, BrokenProcessPool):
        return UserError(WORKER_KILLED)
    if isinstance(error, OverrideParseException):
        return UserError(f"{error.override}: {QUOTE}; {_one_line(str(error))}")
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return os_errors.explained(error, overrides)
    if own := _user_error(error):
        return own
    said = str(error) or str(error.__cause__ or type(error).__name__)
    hint = suggestions.for_key(said) or suggestions.for_option(said) or HELP
    return UserError(f"{_one_line(said)} ({hint})")


def report_bug(error: Exception) -> None:
    """Returns one line for an unexpected error and writes the traceback into the job's folder."""
    config = HydraConfig.get()
    job = f"job {config.job.num}" if config.mode == RunMode.MULTIRUN else "job"
    line = failures.explain(error, "job", Path(config.runtime.output_dir))
    print(f"squarehead: {job}: {line}; finished stages are stored", file=sys.stderr)


def _user_error(error: BaseException | None) -> UserError | None:
    """Returns the UserError that one of our resolvers raised and OmegaConf wrapped."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def _one_line(text: str) -> str:
    """Returns Hydra's message in one line: without the search path, lists of options separated by commas."""
    text = re.split(r"\n(?:Config search path|Search path|See https)", text.strip())[0]
    text = re.sub(r"\s*\n\t", ", ", text).replace(":, ", ": ")
    return "; ".join(line.strip().rstrip(".;") for line in text.splitlines() if line.strip())
