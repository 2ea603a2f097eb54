"""Runs of the whole pipeline on small sources: in this process, in one that is forked, or as a user starts them."""

from __future__ import annotations

import contextlib
import functools
import io
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline import __main__ as command_line
from pipeline.plan import Stores, make_plan
from pipeline.recipes import build
from pipeline.record.outcome import Outcomes
from pipeline.run import run_plan
from pipeline.tracking.tracker import Tracker
from tests import tiny
from tests.composed import config_of

PROJECT = Path(__file__).resolve().parent.parent
WIDE = {"COLUMNS": "200"}


def hear_interrupts() -> None:
    """For `preexec_fn`: a child hears ctrl-C even where the tests themselves were started in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


# ---- commands in this process ----


def call(
    words: list[str], folder: Path, main: Callable[[], object] = command_line.main, **variables: str
) -> subprocess.CompletedProcess[str]:
    """`python -m pipeline WORDS` in this process, typed in `folder`: exit code and what it said. `main`: of another
    command. It finds the process as it is, and leaves it so."""
    said, told = io.StringIO(), io.StringIO()
    code: object = 0
    with _kept(), contextlib.chdir(folder), contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
        os.environ.update(WIDE | variables)
        sys.argv = ["python", *words]
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    if isinstance(code, str):  # as the interpreter does
        told.write(f"{code}\n")
        code = 1
    assert code is None or isinstance(code, int)
    return subprocess.CompletedProcess(words, code or 0, said.getvalue(), told.getvalue())


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    variables, arguments = dict(os.environ), sys.argv
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(variables)
        sys.argv = arguments
        for number, handler in handlers.items():
            signal.signal(number, handler)


# ---- commands in a process of their own ----


@functools.cache
def processes() -> Any:
    """Forks processes from one that has imported everything: each begins at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    return context


@dataclass(frozen=True)
class Forked:
    process: BaseProcess
    said: Path
    """What it writes."""

    def end(self, seconds: float = 300) -> tuple[int | None, str]:
        """Waits for it: its exit code and all that it said."""
        self.process.join(seconds)
        return self.process.exitcode, self.said.read_text()


def fork(words: list[str], folder: Path, umask: int = 0o022) -> Forked:
    """`python -m pipeline WORDS`, typed in `folder`."""
    process: BaseProcess = processes().Process(target=_typed, args=(words, folder, umask), daemon=True)
    process.start()
    return Forked(process, _said(folder, process.pid))


def _said(folder: Path, pid: int | None) -> Path:
    return folder / f"said-{pid}"


def _typed(words: list[str], folder: Path, umask: int) -> None:
    os.setsid()
    os.umask(umask)
    os.chdir(folder)
    with _said(folder, os.getpid()).open("wb") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(WIDE)
    sys.argv = ["python", *words]
    command_line.main()


# ---- small sources ----


@dataclass(frozen=True)
class Sources:
    """A tiny model in hub format, texts, and questions with answers."""

    model: Path
    texts: Path
    questions: Path


def make_sources(folder: Path) -> Sources:
    return Sources(
        tiny.save_model(folder / "model"), tiny.save_texts(folder / "texts"), tiny.save_questions(folder / "questions")
    )


@dataclass(frozen=True)
class Place:
    """Where runs keep their results, and what they start from."""

    sources: Sources
    folder: Path

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def small(self) -> list[str]:
        """What makes any experiment small; the data are still the experiment's."""
        return tiny.options(self.sources.model, self.runs, self.folder / "cache")

    @property
    def options(self) -> list[str]:
        """A small run on the tiny texts."""
        return [*self.small, "data=text", f"data.path={self.sources.texts}"]

    def run(self, *overrides: str) -> Outcomes:
        """On the tiny texts, in this process, without MLflow."""
        return self.run_config(*self.options, *overrides)

    def run_config(self, *overrides: str) -> Outcomes:
        resolved = config_of(*overrides)
        stores = Stores.of(resolved)
        plan = make_plan(resolved, build(resolved), stores)
        outcomes: Outcomes = {}
        run_plan(plan, resolved, stores, Tracker(), Console(quiet=True), self.folder / "job", False, outcomes)
        return outcomes

    def words(self, *overrides: str) -> list[str]:
        """What a user types after `python -m pipeline` for a small run on the tiny texts."""
        flags = [word for word in overrides if word.startswith("-")]
        rest = [word for word in overrides if not word.startswith("-")]
        return [*flags, *self.options, *rest]

    def command(self, *overrides: str) -> list[str]:
        return [sys.executable, "-m", "pipeline", *self.words(*overrides)]

    def call(self, *overrides: str) -> subprocess.CompletedProcess[str]:
        """The command in this process, from another folder."""
        return call(self.words(*overrides), self.folder)

    def fork(self, *overrides: str, umask: int = 0o022) -> Forked:
        """The command in a process of its own that begins at once."""
        return fork(self.words(*overrides), self.folder, umask)

    def start(self, *overrides: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """The command as a user starts it, from another folder."""
        return subprocess.run(
            self.command(*overrides),
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(PROJECT)} | WIDE,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
