"""Runs of the whole pipeline on small sources, in this process or as a user starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pipeline.plan import Stores, make_plan
from pipeline.recipes import build
from pipeline.record.outcome import Outcomes
from pipeline.run import run_plan
from pipeline.tracking.tracker import Tracker
from tests import tiny
from tests.composed import config

PROJECT = Path(__file__).resolve().parent.parent


def hear_interrupts() -> None:
    """For `preexec_fn`: a child hears ctrl-C even where the tests themselves were started in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


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
        resolved = config(*overrides)
        stores = Stores.of(resolved)
        plan = make_plan(resolved, build(resolved), stores)
        outcomes: Outcomes = {}
        run_plan(plan, resolved, stores, Tracker(), Console(quiet=True), self.folder / "job", False, outcomes)
        return outcomes

    def command(self, *overrides: str) -> list[str]:
        flags = [word for word in overrides if word.startswith("-")]
        rest = [word for word in overrides if not word.startswith("-")]
        return [sys.executable, "-m", "pipeline", *flags, *self.options, *rest]

    def start(self, *overrides: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """As a user does, from another folder."""
        return subprocess.run(
            self.command(*overrides),
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(PROJECT), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=seconds,
        )
