"""Debian packages as sources of data: fetched with the user's own apt, checked, kept, unpacked; never installed.

`deb:NAME+NAME` names packages and not versions: a stable release replaces them by point releases, and its archive keeps
no old ones. So a package in the cache takes precedence, and `deb:NAME#sha256=HEX` pins one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote

from filelock import FileLock

from stages.contracts import Log, UserError
from stages.sources import packages

PREFIX = "deb:"
_PART = re.compile(r"(?P<name>[a-z0-9][a-z0-9.-]+)(#sha256=(?P<sha256>[0-9a-f]{64}))?")
_TOOLS = ("apt-get", "apt-cache", "dpkg-deb")


@dataclass(frozen=True)
class Deb:
    name: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.name}={self.version}"


def find(path: str, option: str) -> list[Deb]:
    """Returns the packages of `deb:NAME+NAME#sha256=HEX`: those in the cache, or else the newest that apt offers.

    Raises UserError that names `option` if there is no apt, or it has no such package.
    """
    return [_cached(name, pin) or _offered(name, pin, option) for name, pin in _parse(path, option).items()]


def identity(debs: list[Deb]) -> dict[str, str]:
    return {
        "debian": " ".join(deb.requirement for deb in debs),
        "sha256": " ".join(deb.sha256 for deb in debs),
    }


def of_identity(source: Mapping[str, str]) -> list[Deb]:
    """Parses an `identity`."""
    debs = []
    for requirement, sha256 in zip(source["debian"].split(), source["sha256"].split(), strict=True):
        name, _, version = requirement.partition("=")
        debs.append(Deb(name, version, sha256))
    return debs


def fetch(deb: Deb, option: str, log: Log) -> Path:
    """Returns the verified `.deb`, from the cache or else through apt. Raises UserError that names `option`."""

    def download(folder: Path) -> Path:
        log.note(f"fetching {deb.requirement} with apt")
        done = _apt("apt-get", "download", deb.requirement, folder=folder)
        file = packages.only_file(folder)
        if done.returncode or not file:
            # what the lists promised may be gone from the archive since: new ones let the next run find what is there
            _update()
            why = _reason(done)
            raise UserError(f"apt could not get {deb.requirement}: {why}; its lists are new now, try again", option)
        return file

    _need_tools(deb.name, option)
    return packages.kept(deb.requirement, deb.sha256, option, log, download)


@contextmanager
def unpacked(files: list[Path]) -> Iterator[Path]:
    """Yields the files of packages in one temporary folder. Their scripts are not run."""
    with TemporaryDirectory(prefix="squarehead-") as folder:
        for file in files:
            subprocess.run(["dpkg-deb", "--extract", str(file), folder], check=True, capture_output=True)
        yield Path(folder)


def _parse(path: str, option: str) -> dict[str, str]:
    parts = [_PART.fullmatch(part) for part in path.removeprefix(PREFIX).split("+")]
    found = {part["name"]: part["sha256"] or "" for part in parts if part}
    if len(found) != len(parts):
        raise UserError(f"expected deb:NAME+NAME..., each with or without #sha256=HEX, got {path!r}", option)
    return found


def _cached(name: str, pin: str) -> Deb | None:
    """Returns the package fetched last."""
    files = (packages.cache_folder() / "packages").glob(f"{pin or '*'}/{name}_*.deb")
    newest = max(files, key=lambda file: file.parent.stat().st_mtime_ns, default=None)
    if not newest:
        return None
    # apt writes the `:` of a version as %3a into the file's name
    return Deb(name, unquote(newest.name.split("_")[1]), newest.parent.name)


def _offered(name: str, pin: str, option: str) -> Deb:
    _need_tools(name, option)
    offered, reason = _known(name), ""
    if not [deb for deb in offered if not pin or deb.sha256 == pin]:
        reason = _update()
        offered = _known(name)
    for deb in offered:
        if not pin or deb.sha256 == pin:
            return deb
    if offered:
        raise UserError(f"apt offers {offered[0].requirement} with sha256 {offered[0].sha256}, not {pin}", option)
    raise UserError(f"apt has no package {name!r}{reason and f' ({reason})'}; {_INSTEAD}", option)


def _known(name: str) -> list[Deb]:
    """Returns what apt's lists say of a package, newest first; without what is only installed here."""
    records = [Parser().parsestr(text) for text in _apt("apt-cache", "show", name).stdout.split("\n\n") if text.strip()]
    return [Deb(name, record["Version"], record["SHA256"]) for record in records if record["SHA256"]]


def _update() -> str:
    """Fetches package lists into our cache, never the system's, which needs root. Returns apt's error messages."""
    for folder in (_state() / "lists" / "partial", _cache() / "archives" / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(_state().with_suffix(".lock")):
        return _reason(_apt("apt-get", "update"))


def _apt(tool: str, *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    # as root, apt would go on as the user _apt, who may not write here
    options = [f"Dir::Cache={_cache()}", "APT::Sandbox::User=root"]
    if _state().exists():
        options += [f"Dir::State={_state()}"]
    command = [tool, "--quiet", *(part for option in options for part in ("-o", option)), *arguments]
    env = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    said = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W:"))]
    return said[0][2:].strip() if said else ""


def _state() -> Path:
    return packages.cache_folder() / "apt" / "state"


def _cache() -> Path:
    return packages.cache_folder() / "apt" / "cache"


def _need_tools(name: str, option: str) -> None:
    lacking = [tool for tool in _TOOLS if not shutil.which(tool)]
    if lacking:
        raise UserError(f"{name} is a Debian package, and this machine has no {lacking[0]}; {_INSTEAD}", option)


_INSTEAD = "set it to a folder of your own files, or to a hub id"
