"""Command lines of the project, each in a session of its own, forked from a process that has imported everything: so
one costs the seconds of its work, and a kill meets the work and not the imports."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from stages.index import STAGES
from tests.running import PROJECT

HEAVY = (
    *("mlflow", "mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store", "sqlalchemy", "alembic"),
    *("transformers", "transformers.models.llama.modeling_llama", "safetensors.torch", "engine.models"),
    *("pipeline.__main__", "pipeline.report", "pipeline.store.__main__", "pipeline.sweeps.__main__"),
    "matplotlib.pyplot",
)  # fmt: skip
POLL_SECONDS = 0.005
LONGEST_SECONDS = 300
ENDING_SECONDS = 60
"""Within which what is left of a killed command must be gone: its workers may save checkpoints."""


def import_everything() -> None:
    # a worker of joblib is a new process, which must find the project
    os.environ["PYTHONPATH"] = str(PROJECT)
    for name in (*HEAVY, *(spec.module for spec in STAGES.values())):
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)


@dataclass(frozen=True)
class Line:
    """`python -m MODULE ARGUMENTS`, typed in `folder`."""

    module: str
    arguments: list[str]
    folder: Path


@dataclass
class Running:
    """A started line."""

    pid: int
    output: Path
    code: int | None = field(default=None)
    """Of its end; negative for a signal."""

    @property
    def said(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def has_ended(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def wait(self, seconds: float = LONGEST_SECONDS) -> int:
        """Its exit code. One that takes longer is killed with all that it started, and its code is -9."""
        until = time.monotonic() + seconds
        while not self.has_ended():
            if time.monotonic() > until:
                self.kill(signal.SIGKILL, everybody=True)
            time.sleep(POLL_SECONDS)
        assert self.code is not None
        return self.code

    def kill(self, number: signal.Signals, everybody: bool) -> None:
        """Its process alone, or all that it started as well."""
        for pid in [self.pid, *(others(self.pid) if everybody else [])]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def survivors(self, seconds: float = ENDING_SECONDS) -> list[int]:
        """Processes that it started and that are there after this time, now killed."""
        until = time.monotonic() + seconds
        while (left := others(self.pid)) and time.monotonic() < until:
            time.sleep(0.1)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return left


def others(session: int) -> list[int]:
    """Living processes of a session but for its leader."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            if pid != session and os.getsid(pid) == session and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


def start(line: Line, output: Path) -> Running:
    def command() -> None:
        os.setsid()
        os.chdir(line.folder)
        with output.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.argv = [line.module, *line.arguments]
        module = importlib.import_module(line.module)
        code = module.main()
        sys.exit(code)

    return Running(_fork(command), output)


def run(line: Line, output: Path) -> Running:
    """To its end."""
    running = start(line, output)
    running.wait()
    return running


def apart(action: Callable[[], list[str]]) -> list[str]:
    """Does it in a process of its own, whose threads, caches and open databases end with it."""
    reading, writing = os.pipe()

    def write() -> None:
        os.close(reading)
        with os.fdopen(writing, "w", encoding="utf-8") as file:
            try:
                lines = action()
            except Exception as error:
                lines = [f"cannot be checked: {error!r}"]
            file.write("\n".join(" ".join(line.split()) for line in lines))

    pid = _fork(write)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as file:
        found = file.read().splitlines()
    os.waitpid(pid, 0)
    return found


def _fork(action: Callable[[], None]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        action()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what goes to the terminal."""
    with (
        Path(os.devnull).open("w") as nothing,
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
    ):
        yield
