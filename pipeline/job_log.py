"""Writes job.log in the folder of a job: what the terminal says of its stages, with the time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from io import StringIO
from pathlib import Path

from rich.console import Console, ConsoleRenderable, RenderHook
from rich.control import Control

from pipeline.credentials import public

NAME = "job.log"
WIDTH = 160


@contextmanager
def kept_log(console: Console, folder: Path) -> Iterator[None]:
    """Appends everything that the console prints in the block to the log, except progress bars."""
    console.push_render_hook(_Copy(folder / NAME))
    try:
        yield
    finally:
        console.pop_render_hook()


class _Copy(RenderHook):
    def __init__(self, path: Path) -> None:
        self._path = path

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        if shown := [it for it in renderables if not isinstance(it, Control)]:
            said = StringIO()
            Console(file=said, width=WIDTH, color_system=None).print(*shown, soft_wrap=True)
            self._add(public(said.getvalue().rstrip()))
        return renderables

    def _add(self, text: str) -> None:
        # a full disk is reported by those who write results
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n" if text else "")
