"""The child that runs one program: `python -I -S child.py FOLDER RESULT_FD SECONDS BYTES`, the program on stdin.

It gives up what it can: its user (if that is root), the network, the file system, the sight of other processes, by
Linux namespaces where the system allows them; processor time, memory, file sizes and further processes by limits;
and Python's ways to the outside by an audit hook. Then it runs the program, and writes to RESULT_FD how that went:
`isolated` or `limited` first, `passed` at the end. It imports nothing of this project.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

NOBODY = 65534
FILE_BYTES = FOLDER_BYTES = 16 << 20
_NEW_MOUNTS, _NEW_USER, _NEW_PIDS, _NEW_NETWORK, _NEW_IPC = 0x20000, 0x10000000, 0x20000000, 0x40000000, 0x8000000
_READ_ONLY, _NO_SUID, _NO_DEVICES, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_PARENT_DEATH_SIGNAL = 1
_REFUSED = (
    *("subprocess.", "socket.", "ctypes.", "shutil.", "pty.", "ftplib.", "http.", "urllib.", "smtplib.", "webbrowser."),
    *("os.fork", "os.posix_spawn", "os.exec", "os.spawn", "os.system", "os.kill", "os.remove", "os.rename"),
    *("os.rmdir", "os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate", "os.mkdir", "os.putenv", "os.utime"),
)
"""Prefixes of the audit events that no test needs."""

libc = ctypes.CDLL(None, use_errno=True)


def main(folder: str, result: int, seconds: int, memory: int) -> None:
    program = sys.stdin.buffer.read()
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    isolated = _isolated(folder)
    os.write(result, b"isolated " if isolated else b"limited ")
    if isolated:
        child = os.fork()  # the first process of its own kind: sees no other
        if child:
            os.waitpid(child, 0)
            os._exit(0)
    root = "/" if isolated else folder
    os.chdir(root)
    _leave_root(root)
    _checked(libc.prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0))
    code = compile(program, "program.py", "exec")
    namespace = {"__name__": "__main__"}
    _limit(seconds, memory)
    sys.addaudithook(_fence(root))
    exec(code, namespace)
    os.write(result, b"passed")
    os._exit(0)


def _isolated(folder: str) -> bool:
    """Moves into new namespaces, with a root folder that holds only Python's library. Returns False if the system does
    not allow it."""
    user, group = os.getuid(), os.getgid()
    spaces = _NEW_MOUNTS | _NEW_PIDS | _NEW_NETWORK | _NEW_IPC
    try:
        if user == 0:
            _checked(libc.unshare(spaces))
        else:
            _checked(libc.unshare(_NEW_USER | spaces))
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/uid_map", f"{user} {user} 1")
            _write("/proc/self/gid_map", f"{group} {group} 1")
        _mount(None, "/", None, _RECURSIVE | _PRIVATE)
        _mount("tmpfs", folder, "tmpfs", _NO_SUID | _NO_DEVICES, f"size={FOLDER_BYTES},nr_inodes=1000,mode=0777")
        inside = os.path.join(folder, "python")
        os.mkdir(inside)
        _mount(os.path.dirname(os.__file__), inside, None, _BIND | _RECURSIVE)
        _mount(None, inside, None, _BIND | _REMOUNT | _READ_ONLY | _NO_SUID | _NO_DEVICES)
    except OSError:
        return False
    os.chroot(folder)
    sys.path[:] = ["/python", "/python/lib-dynload"]
    return True


def _leave_root(folder: str) -> None:
    """Changes to another user, since the limit of processes does not bind root."""
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    arguments = (None if text is None else text.encode() for text in (source, target, kind))
    _checked(libc.mount(*arguments, ctypes.c_ulong(flags), None if data is None else data.encode()))


def _checked(code: int) -> None:
    if code:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _limit(seconds: int, memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))


def _fence(folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    inside = os.path.join(os.path.realpath(folder), "")

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_REFUSED):
            raise PermissionError(f"{event} is not allowed here")
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            name = arguments[0]
            path = os.path.realpath(os.fsdecode(name)) if isinstance(name, str | bytes) else ""
            if not path.startswith(inside):
                raise PermissionError(f"writing to {name!r} is not allowed here")

    return audit


if __name__ == "__main__":
    with suppress(BaseException):  # a program that fails has not passed; nobody reads how
        main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    os._exit(1)
