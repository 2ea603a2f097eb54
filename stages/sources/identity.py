"""The identity of a source, independent of its place: the part of `model.path` or `data.path` that is fingerprinted.

Fast and free of torch, because every plan asks for it.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable
from errno import EINVAL
from pathlib import Path
from stat import S_ISREG

from stages.contracts import UserError
from stages.sources import debian, interpreter, packages, remembered

GENERATED = "generated"
"""The `data.path` of data that a generator makes (`stages.data.generators`)."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_KINDS = {"model": "model", "data": "dataset", "test_data": "dataset", "corpus": "dataset"}
_HUB_SECONDS = 10
_STABLE_NS = 2_000_000_000
"""A file younger than this could change again within one tick of the file system's clock: not remembered."""


def identity(path: str, revision: str, option: str) -> dict[str, str]:
    """Returns one of {"package", "sha256"}, {"debian", "sha256"}, {"digest"} of a local file or folder, {"hub",
    "commit"}, and {"generated"} of data that options and a seed make.

    `option` (`model.path`, `data.path`) is named in errors, and its group says which kind of hub repository is meant.
    Raises UserError when the source is not there.
    """
    if path.startswith(packages.PREFIX):
        _no_revision(revision, "a package, whose version is in its path", option)
        package = packages.parse(path, option)
        return {"package": package.requirement, "sha256": package.sha256}
    if path.startswith(debian.PREFIX):
        _no_revision(revision, "Debian packages, which #sha256=HEX after a name pins", option)
        if not option.startswith("data."):
            raise UserError(f"Debian packages hold data, no models, got {path!r}", option)
        return debian.identity(debian.find(path, option))
    if path == GENERATED and option.startswith(("data.", "corpus.")):
        _no_revision(revision, "generated data", option)
        return {"generated": "by options"}
    if path == interpreter.PATH:
        _no_revision(revision, "the interpreter's library", option)
        return {"digest": digest_of(interpreter.files(), interpreter.folder(), option)}
    here = local(path)
    if here.exists():
        _no_revision(revision, "a local path", option)
        return {"digest": digest(here, option)}
    if path.startswith(("./", "../", "/", "~")) or not _HUB_ID.fullmatch(path):
        raise UserError(f"there is no file or folder {path!r}", option)
    return {"hub": path, "commit": _commit(path, revision, option)}


def local(path: str) -> Path:
    return Path(path).expanduser().absolute()


def digest(path: Path, option: str) -> str:
    """Returns the sha256 of a file's content; of a folder, over the sorted relative names and contents of its files.

    Hidden files and folders (`.git`, `.cache`) are left out. Contents are read once: later calls recognise a file by
    path, size and modification time. Raises UserError, with `option`, for links that lead nowhere, pipes, devices, and
    what cannot be read.
    """
    try:
        if path.is_dir():
            return digest_of(_files(path), path, option)
        known = remembered.recall("digests")
        fresh: dict[str, list[int | str]] = {}
        found = _content(path, known, fresh)
    except OSError as error:
        raise _unreadable(error, path, option) from None
    remembered.remember("digests", fresh)
    return found


def digest_of(files: Iterable[Path], folder: Path, option: str) -> str:
    """Returns the sha256 over the sorted names, relative to `folder`, and the contents of some of its files, as
    `digest` does."""
    known = remembered.recall("digests")
    fresh: dict[str, list[int | str]] = {}
    try:
        names = sorted(file.relative_to(folder).as_posix() for file in files)
        lines = [f"{_content(folder / name, known, fresh)}  {name}\n" for name in names]
    except OSError as error:
        raise _unreadable(error, folder, option) from None
    remembered.remember("digests", fresh)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _unreadable(error: OSError, path: Path, option: str) -> UserError:
    return UserError(f"cannot read {error.filename or path}: {error.strerror or error}", option)


def _files(folder: Path) -> list[Path]:
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if not name.startswith(".")]
    return found


def _content(file: Path, known: dict[str, list[int | str]], fresh: dict[str, list[int | str]]) -> str:
    stat = file.stat()
    if not S_ISREG(stat.st_mode):
        raise OSError(EINVAL, "it is a pipe, a device or something else that is no file", str(file))
    seen = known.get(str(file))
    if seen and seen[:2] == [stat.st_size, stat.st_mtime_ns]:
        return str(seen[2])
    with file.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    if time.time_ns() - stat.st_mtime_ns > _STABLE_NS:
        fresh[str(file)] = [stat.st_size, stat.st_mtime_ns, sha256]
    return sha256


def _commit(repo: str, revision: str, option: str) -> str:
    if _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    kind = _HUB_KINDS[option.partition(".")[0]]
    name = f"{kind}s/{repo}@{revision or 'main'}"
    unreachable = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            commit = HfApi().repo_info(repo, repo_type=kind, revision=revision or None, timeout=_HUB_SECONDS).sha
        except RevisionNotFoundError:
            raise UserError(f"{repo} has no revision {revision!r}", _revision_option(option)) from None
        except RepositoryNotFoundError:
            message = f"{repo!r} is no file or folder here, nor a {kind} on the hub (or it is private: log in)"
            raise UserError(message, option) from None
        except Exception as error:  # each HTTP library raises its own errors when the hub is unreachable
            unreachable = f"{type(error).__name__}: {error}"
        else:
            remembered.remember("commits", {name: commit})
            return str(commit)
    cached = remembered.recall("commits").get(name) or _cached_ref(Path(constants.HF_HUB_CACHE), kind, repo, revision)
    if not cached:
        raise UserError(f"{repo!r} is no file or folder here, nor reachable on the hub ({unreachable})", option)
    return str(cached)


def _cached_ref(cache: Path, kind: str, repo: str, revision: str) -> str | None:
    ref = cache / f"{kind}s--{repo.replace('/', '--')}" / "refs" / (revision or "main")
    return ref.read_text(encoding="utf-8").strip() if ref.exists() else None


def _revision_option(option: str) -> str:
    return option.rpartition(".")[0] + ".revision"


def _no_revision(revision: str, what: str, option: str) -> None:
    if revision:
        raise UserError(f"got {revision!r} for {what}; leave it empty", _revision_option(option))
