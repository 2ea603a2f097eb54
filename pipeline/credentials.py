"""Keeps names, passwords and tokens of addresses out of records.

`tracking.uri=http://name:password@host` works; what is recorded, shown and logged is `http://host`, and the whole
address is passed on in the environment of this process and its children. So are MLFLOW_TRACKING_USERNAME and
MLFLOW_TRACKING_PASSWORD, which MLflow reads itself and which are the better way. No other option may hold credentials
(`refuse_elsewhere`).
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
"""Name and password in a URI, also with backslashes, as Hydra and LaTeX write it."""
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
"""Token in the query of a URI, or in the ODBC settings that a URI may hold."""
_KNOWN_FORM = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|AKIA[0-9A-Z]{16})\b"
)
"""Tokens of hubs, which tell what they are."""
_NAMED = re.compile(
    r"""(\b(?:[A-Z][A-Z0-9_]*_)?(?:TOKEN|PASSWORD|PASSWD|SECRET|API_KEY|ACCESS_KEY)(?:_[A-Z0-9_]*)?['"]?\s*[=:]\s*['"]?
      | \bAuthorization['"]?\s*[=:]\s*['"]?(?:Basic|Bearer)\s+)
      [^\s,}'"]+""",
    re.VERBOSE,
)
"""Variables of the environment and headers of requests: `HF_TOKEN=...`, `Authorization: Bearer ...`."""
_BACKSLASH = "\\"
_OPTION = re.compile(r"(\+{0,2}tracking\.uri=)(.*)", re.DOTALL)


def public(text: str) -> str:
    """Returns the text without the names, passwords and tokens of the URIs in it."""
    if known := os.environ.get(VARIABLE):
        text = text.replace(known, public_address(known))
    return _hidden(text)


def public_address(uri: str) -> str:
    """Returns a single URI without credentials. Quotes and spaces do not end it; each is written as `_`."""
    return _hidden(_one_word(uri))


def public_values(value: Any) -> Any:
    """Applies `public` to all texts inside lists and dictionaries."""
    if isinstance(value, str):
        return public(value)
    if isinstance(value, dict):
        return {key: public_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(public_values(item) for item in value)
    return value


def _hidden(text: str) -> str:
    without_names = _BARE_USER_INFO.sub(r"\1", _USER_INFO.sub(r"\1", text))
    return _KNOWN_FORM.sub("***", _NAMED.sub(r"\1***", _TOKEN.sub(r"\1***", without_names)))


def withdraw(uri: str) -> str:
    """Returns the address without its credentials; `reveal` restores them in this process and its children."""
    if not _holds_credentials(uri):
        return uri
    os.environ[VARIABLE] = uri
    return public_address(uri)


def _holds_credentials(uri: str) -> bool:
    return public_address(uri) != _one_word(uri)


def _one_word(uri: str) -> str:
    """Replaces spaces and quotes in an address by `_`, so that a password with them does not end there. A text without
    a scheme may be a sentence and is returned unchanged."""
    return re.sub(r"""['"<>\s]""", "_", uri) if "//" in uri else uri


def reveal(uri: str) -> str:
    """Returns the address with its credentials, if any are known."""
    known = os.environ.get(VARIABLE, "")
    return known if known and public_address(known) == uri else uri


def withdraw_from(arguments: Sequence[str]) -> list[str]:
    """Returns a command line whose `tracking.uri` has no credentials."""
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
    """Raises UserError for credentials in options other than `tracking.uri`, since Hydra would record them."""
    for argument in arguments:
        option, _, value = argument.lstrip("+~").partition("=")
        if _holds_credentials(value):
            raise UserError("a name, password or token in this address would be recorded; leave it out", option)
        if _NAMED.search(f"{option.rpartition('.')[2]}={value}"):
            raise UserError("a password or token would be recorded; set it in the environment instead", option)


def clean_files(folder: Path, pattern: str) -> None:
    """Rewrites Hydra's files that contain credentials from a configuration file."""
    for path in folder.glob(pattern):
        text = path.read_text(encoding="utf-8")
        if public(text) != text:
            replace_text(path, public(text))
