"""Side environments: a peer's own packages, which conflict with the project's, in a venv beside the project's.

Created on request by `make bench-env-NAME`, which runs `python -m engine.peers NAME`; nothing creates them
automatically.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine.errors import EngineError
from engine.peers.contracts import Unavailable

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Environment:
    name: str
    newest_python: tuple[int, int] | None = None
    """The newest Python that the peer runs on; None: any."""
    pip_arguments: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables while it is created."""
    notice: str = ""
    """Licence terms to show to the user who creates it."""

    @property
    def folder(self) -> Path:
        return PROJECT / f".venv-{self.name}"

    @property
    def requirements(self) -> Path:
        return Path(__file__).with_name(f"{self.name}.txt")

    def python(self) -> Path | Unavailable:
        """Returns the environment's interpreter, if it was created completely and from the pins of this version."""
        done = self.folder / ".installed"
        if not done.exists() or done.read_text(encoding="ascii") != self._digest():
            return Unavailable(f"{self.name} is not installed: make bench-env-{self.name}")
        return self._interpreter

    def make(self) -> None:
        """Creates it anew with pip. Raises EngineError without a fitting Python, or when pip fails."""
        base = self._base_python()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._run([base, "-m", "venv", str(self.folder)], {})
        pip = [str(self._interpreter), "-m", "pip", "install", "--disable-pip-version-check", *self.pip_arguments]
        self._run([*pip, "-r", str(self.requirements)], self.variables)
        (self.folder / ".installed").write_text(self._digest(), encoding="ascii")

    @property
    def _interpreter(self) -> Path:
        return self.folder / "bin" / "python"

    def _base_python(self) -> str:
        if self.newest_python is None or sys.version_info[:2] <= self.newest_python:
            return sys.executable
        wanted = "python{}.{}".format(*self.newest_python)
        found = shutil.which(wanted)
        if found is None:
            raise EngineError(f"{self.name} runs on Python up to {wanted[6:]}; put {wanted} on the PATH")
        return found

    def _digest(self) -> str:
        made_from = self.requirements.read_bytes() + repr(sorted(self.variables.items())).encode()
        return hashlib.sha256(made_from).hexdigest()

    def _run(self, command: list[str], variables: Mapping[str, str]) -> None:
        status = subprocess.run(command, env=os.environ | dict(variables), check=False).returncode
        if status:
            raise EngineError(
                f"the environment {self.folder.name} was not made: {' '.join(command)} ended with {status}"
            )


DEEPSPARSE = Environment(
    "deepsparse",
    newest_python=(3, 11),
    pip_arguments=("--only-binary", ":all:"),
    notice=(
        "DeepSparse 1.8 comes under the Neural Magic DeepSparse Community License: for evaluation in development and "
        "testing environments only, not for production, not to be passed on. By using it you accept that licence "
        "(LICENSE in its package). Its usage analytics are switched off here."
    ),
)
LLAMACPP = Environment(
    "llamacpp",
    # compiled here, for this processor: wheels stop at AVX2, and so would its figures; pip's cache may hold one of
    # another processor
    pip_arguments=("--no-binary", "llama-cpp-python", "--no-cache-dir"),
    # gcc 12 removes the stores of AMX's tile configuration as dead, and llama.cpp would end by a signal
    variables={"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF", "CXXFLAGS": "-fno-tree-dse -fno-dse"},
    notice="llama.cpp comes under the MIT licence. It is compiled for this processor, which takes minutes.",
)
ENVIRONMENTS = {environment.name: environment for environment in (DEEPSPARSE, LLAMACPP)}


def python_of(runtime: str) -> Path | Unavailable:
    """Returns the interpreter for `onnxruntime`, `deepsparse` or `llamacpp`, if it and the writers of its files are
    there."""
    needed = {"onnxruntime": ("onnx", "onnxruntime"), "deepsparse": ("onnx",), "llamacpp": ("gguf",)}[runtime]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        target = f"bench-env-{runtime}" if runtime != "llamacpp" else "env"
        return Unavailable(f"{' and '.join(missing)} not installed: make {target}")
    return Path(sys.executable) if runtime == "onnxruntime" else ENVIRONMENTS[runtime].python()
