"""Names, passwords and tokens in addresses: used, and written nowhere.

`tracking.uri=http://name:password@host` works; what is recorded, shown and logged is `http://host`, and the whole
address goes on in the environment of this process and its children. So do MLFLOW_TRACKING_USERNAME and
MLFLOW_TRACKING_PASSWORD, which MLflow reads itself and which are the better way. No other
option has a use for credentials (`refuse_elsewhere`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.disk import replace_text
from stages.contracts import UserError

VARIABLE = "SQUAREHEAD_TRACKING_URI"
_USER_INFO = re.compile(
    r"""(:\\*/\\*/)(?:
        [^\s/'"<>]+                                  # up to the host's @
        | [^\s/'"<>@:]*:(?!\d*\\*[/?\#])[^\s'"<>@]*   # a password that holds a slash; but no port and path
    )@""",
    re.VERBOSE,
)
"""In a URI, also as Hydra and LaTeX write it, with backslashes."""
_BARE_USER_INFO = re.compile(r"""((?:^|[\s'"=,(\[]))[^\s/\\:@'"<>=,(\[]+\\*:(?!\\*/)[^\s@'"<>]+@(?=[\w\[])""")
"""A name and a password before a host without a scheme, `name:password@host`."""
_TOKEN = re.compile(
    r"""((?:[?&;\#]|%3B)
        (?:[\w\\-]*(?:token|passw|pwd|secret|access[-_]?key|api[-_]?key|signature|credential|assertion|session)[\w\\-]*
          |(?:[\w\\-]+[-_])?key|(?:(?:auth|authorization|access|device)[-_]?)?code|sig|pass|auth|authorization|bearer|jwt|ticket|otp|sid)
        \\*(?:=|%3D))
        (?:(?!%3B)[^&;\s'"<>])+""",
    re.IGNORECASE | re.VERBOSE,
)
"""In the query of a URI, and in the settings of ODBC that one may hold."""
_BACKSLASH = "\\"
_OPTION = re.compile(r"(\+{0,2}tracking\.uri=)(.*)", re.DOTALL)


def public(text: str) -> str:
    """Without the names, passwords and tokens that URIs in it may carry."""
    if known := os.environ.get(VARIABLE):
        text = text.replace(known, public_address(known))
    return _hidden(text)


def public_address(uri: str) -> str:
    """The same of a text that is one URI: no quote or space ends it, each is written `_`."""
    return _hidden(_one_word(uri))


def public_values(value: Any) -> Any:
    """The same for all texts inside lists and dictionaries."""
    if isinstance(value, str):
        return public(value)
    if isinstance(value, dict):
        return {key: public_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(public_values(item) for item in value)
    return value


def _hidden(text: str) -> str:
    without_names = _BARE_USER_INFO.sub(r"\1", _USER_INFO.sub(r"\1", text))
    return _TOKEN.sub(r"\1***", without_names)


def withdraw(uri: str) -> str:
    """The address without its credentials, which `reveal` gives back in this process and its children."""
    if not _holds_credentials(uri):
        return uri
    os.environ[VARIABLE] = uri
    return public_address(uri)


def _holds_credentials(uri: str) -> bool:
    return public_address(uri) != _one_word(uri)


def _one_word(uri: str) -> str:
    """A password with spaces or quotes ends at none; what has no scheme may be a sentence."""
    return re.sub(r"""['"<>\s]""", "_", uri) if "//" in uri else uri


def reveal(uri: str) -> str:
    """The address with the credentials that belong to it, if any are known."""
    known = os.environ.get(VARIABLE, "")
    return known if known and public_address(known) == uri else uri


def withdraw_from(arguments: Sequence[str]) -> list[str]:
    """A command line whose `tracking.uri` has no credentials any more."""
    found = []
    for argument in arguments:
        if option := _OPTION.fullmatch(argument):
            typed = option[2].strip("'\"")
            if _holds_credentials(typed):
                quote = option[2].partition(typed)[0]
                argument = f"{option[1]}{quote}{withdraw(typed.replace(_BACKSLASH, ''))}{quote}"
        found.append(argument)
    return found


def refuse_elsewhere(arguments: Sequence[str]) -> None:
    """Raises UserError for credentials in other options than `tracking.uri`, which would be recorded by Hydra."""
    for argument in arguments:
        option, _, value = argument.lstrip("+~").partition("=")
        if _holds_credentials(value):
            raise UserError("a name, password or token in this address would be recorded; leave it out", option)


def clean_files(folder: Path, pattern: str) -> None:
    """Rewrites files of Hydra's that hold credentials out of a configuration file."""
    for path in folder.glob(pattern):
        text = path.read_text(encoding="utf-8")
        if public(text) != text:
            replace_text(path, public(text))
