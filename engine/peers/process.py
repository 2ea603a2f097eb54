"""The parent's side of a peer's process: requests and answers as JSON lines through pipes; arrays go through files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from engine.errors import EngineError

SERVE = Path(__file__).parent / "children" / "serve.py"


class Peer:
    """Calls `call(method, **arguments)` on the `Runtime` of a module in `children`. The process ends with this
    object."""

    def __init__(self, python: Path, module: str, variables: Mapping[str, str] | None = None) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [str(python), str(SERVE), module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=os.environ | dict(variables or {}),
            text=True,
            encoding="utf-8",
            # ctrl-C at the terminal is for the parent; the child ends when the pipe does
            start_new_session=True,
        )
        self._name = module.removeprefix("run_")
        self._end = weakref.finalize(self, _end, self._process, self._said)

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, method: str, **arguments: Any) -> Any:
        """Returns the method's answer. Raises EngineError with its error in one line, or with why the process ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"method": method, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except (BrokenPipeError, ValueError):  # ValueError: closed
            line = ""
        if not line:
            raise EngineError(f"{self._name}: {self._last_words()}")
        reply = json.loads(line)
        if "error" in reply:
            raise EngineError(f"{self._name}: " + " ".join(reply["error"].split()))
        return reply["answer"]

    def close(self) -> None:
        self._end()

    def _last_words(self) -> str:
        """Returns how the process ended, and the first line of its output that reports an error, else its last."""
        if self._said.closed:
            return "its process was closed"
        status = self._process.wait()
        self._said.seek(0)
        said = [line.strip() for line in self._said.read().decode(errors="replace").splitlines()]
        # a runtime that crashes may print memory
        lines = [line for line in said if line and line.isprintable() and "\ufffd" not in line]
        telling = [line for line in lines if line.startswith("Assertion") or "Error:" in line] or lines[-1:]
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        return f"its process ended {how}" + (f": {telling[0]}" if telling else "")


def _end(process: subprocess.Popen[str], said: IO[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        try:
            pipe.close()
        except BrokenPipeError:
            continue  # unwritten requests are dropped
    said.close()
