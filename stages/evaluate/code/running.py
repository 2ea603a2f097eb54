"""Runs a program in a child of its own, and returns whether it passed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CHILD = Path(__file__).with_name("child.py")
MEMORY_BYTES = 1 << 30
_GRACE = 5
"""Seconds over the limit of processor time, for a busy machine and for programs that sleep."""


@dataclass(frozen=True)
class Verdict:
    passed: bool
    timed_out: bool
    isolation: Literal["isolated", "limited", "none"]
    """isolated: without network and file system; limited: the system allows no namespaces; none: it did not begin."""


def run(program: str, seconds: int) -> Verdict:
    """Runs a program, within `seconds` of processor time, and returns whether it ends without an error."""
    with tempfile.TemporaryDirectory(prefix="squarehead-code-", ignore_cleanup_errors=True) as folder:
        read, write = os.pipe()
        command = [sys.executable, "-I", "-S", str(CHILD), folder, str(write), str(seconds), str(MEMORY_BYTES)]
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}, cwd=folder, pass_fds=(write,),
            start_new_session=True,
        )  # fmt: skip
        os.close(write)
        timed_out = False
        try:
            child.communicate(program.encode(), timeout=seconds + _GRACE)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        said = _said(read)
        isolation = said[0] if said and said[0] in ("isolated", "limited") else "none"
        return Verdict(said[1:] == ["passed"] and not timed_out, timed_out, isolation)  # type: ignore[arg-type]


def run_all(programs: Sequence[str], seconds: int, at_once: int) -> list[Verdict]:
    """Runs the programs and returns the verdicts in their order."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda program: run(program, seconds), programs))


def _said(read: int) -> list[str]:
    os.set_blocking(read, False)
    try:
        return os.read(read, 1000).decode(errors="replace").split()
    except BlockingIOError:
        return []
    finally:
        os.close(read)
