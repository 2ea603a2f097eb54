"""Durable writes, atomic replacement, locks, and sizes on the file system."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

READ_ONLY = 0o444
CHUNK_BYTES = 1 << 22
POLL_SECONDS = 0.1
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def fsync(path: Path) -> None:
    """Makes a file's contents, or a folder's names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(root: Path) -> None:
    """Syncs folders only, the deepest first; their files were synced when they were sealed."""
    for folder, _, _ in os.walk(root, topdown=False):
        fsync(Path(folder))


def sha256(path: Path, progress: Callable[[int], None] = lambda count: None) -> str:
    """Returns the hex digest of a file. Calls `progress` with the number of bytes of each chunk read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest()


def delete(path: Path) -> None:
    """Deletes a file, or a folder with all it holds, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def replace_folder(new: Path, place: Path, aside: Path) -> None:
    """Replaces the folder `place` by `new`. A reader of `place` sees one or the other, complete, at any instant.

    Where the file system cannot exchange two names in one step, `place` first moves to `aside`, and for that instant
    there is no folder at `place`.
    """
    if not _exchange(new, place):
        place.rename(aside)
        new.rename(place)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step (Linux). Returns False where that is not supported."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


@contextmanager
def locked(path: Path, waiting: Callable[[str], None] | None) -> Iterator[bool]:
    """Holds a lock of the kernel, which is released when the process dies. Yields whether it had to wait.

    Calls `waiting` once with the holder; without `waiting`, raises filelock.Timeout if the lock is held.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, fallback_to_soft=False, thread_local=False)
    waited = False
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting is None:
            raise
        waited = True
        waiting(path.read_text(encoding="utf-8") or "another process")
        lock.acquire(poll_interval=POLL_SECONDS)
    try:
        with suppress(OSError):  # the holder's name is optional: a full disk must not stop the work
            path.write_text(f"pid {os.getpid()} on host {socket.gethostname()}", encoding="utf-8")
        yield waited
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Returns whether a process holds this lock now."""
    if not path.exists():
        return False
    lock = FileLock(path, fallback_to_soft=False, thread_local=False)
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


def is_full(error: BaseException | None) -> bool:
    """Returns whether an error comes from a full disk or quota, also where a library has wrapped it."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:  # causes of an error may be cyclic
        seen.append(error)
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(os.strerror(code) in str(error) for code in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def files_below(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def used_bytes(folders: Iterable[Path]) -> int:
    """Returns the bytes of all files below, counting hard-linked files once."""
    sizes = {}
    for folder in folders:
        for stat in map(os.lstat, files_below(folder)):
            sizes[stat.st_dev, stat.st_ino] = stat.st_size
    return sum(sizes.values())


def freed_bytes(folders: Iterable[Path]) -> int:
    """Returns the bytes freed by deleting these folders: files of which all hard links lie in them."""
    links: dict[tuple[int, int], int] = {}
    freed = 0
    for folder in folders:
        for stat in map(os.lstat, files_below(folder)):
            key = stat.st_dev, stat.st_ino
            links[key] = links.get(key, 0) + 1
            freed += stat.st_size if links[key] == stat.st_nlink else 0
    return freed


def free_bytes(path: Path) -> int:
    """Returns the free bytes on the disk where the path is, or would be created."""
    here = path.absolute()
    return shutil.disk_usage(next(place for place in (here, *here.parents) if place.exists())).free


def format_bytes(count: float) -> str:
    """Formats a size, `1.25 MB`: three significant digits, powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def replace_text(path: Path, text: str) -> Path:
    """Writes a file in one step: a reader sees the old text or the new one. On a full disk the old text stays, and
    nothing else is left behind."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        return partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
