"""Building the kernels: without a compiler nothing fails, a change of the sources is seen, and make rebuilds for it."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from engine import kernels, sources, structures
from engine.peers.contracts import Unavailable
from pipeline.recipes import build
from stages.benchmark.backends import BACKENDS
from stages.contracts import Checkpoint
from tests.composed import config

PROJECT = Path(__file__).resolve().parents[2]
BUILT = ["setup.py", "pyproject.toml", "README.md", "LICENSE", "Makefile", "constraints.txt"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the build reads, and nothing built."""
    for name in BUILT:
        shutil.copy(PROJECT / name, tmp_path)
    shutil.copytree(PROJECT / "engine", tmp_path / "engine", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return tmp_path


@pytest.mark.parametrize("broken", [{"CC": "false", "CXX": "false"}, {"PATH": ""}], ids=["failing", "missing"])
def test_without_a_compiler_the_build_warns_and_succeeds(checkout: Path, broken: dict[str, str]) -> None:
    variables = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX")} | broken
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    found = subprocess.run(command, cwd=checkout, env=variables, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert 'building extension "engine._kernels" failed' in found.stderr
    assert not [*checkout.rglob("_kernels*"), *checkout.rglob("*.o")]


def test_the_digest_changes_with_contents_and_names_of_sources_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "NATIVE", tmp_path)
    assert sources.digest() == ""
    (tmp_path / "a.cpp").write_text("int a;")
    (tmp_path / "b.h").write_text("int b;")
    seen = [sources.digest()]
    (tmp_path / "notes.md").write_text("not compiled")
    (tmp_path / "a.cpp").touch()
    assert sources.digest() == seen[0]
    (tmp_path / "b.h").write_text("int c;")
    seen.append(sources.digest())
    (tmp_path / "b.h").rename(tmp_path / "c.h")
    seen.append(sources.digest())
    (tmp_path / "c.h").unlink()
    seen.append(sources.digest())
    assert len(set(seen)) == 4


def test_kernels_that_are_named_are_those_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No silent return to the built ones."""
    kernels._library.cache_clear()
    monkeypatch.setenv("SQUAREHEAD_KERNELS", str(tmp_path / "mine.so"))
    try:
        assert "mine.so" in str(kernels.unavailable())
    finally:
        kernels._library.cache_clear()


@pytest.mark.parametrize(("built", "runtime"), [(None, "torch"), (Path("_kernels.so"), "engine")])
def test_int8_is_evaluated_by_torch_where_there_are_no_kernels(
    built: Path | None, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.resolve.engine_library", lambda: built)
    graph = build(config())
    for node in ("evaluate_q", "dense_eval_q"):
        assert graph[node].config.runtime == runtime  # type: ignore[attr-defined]
    assert graph["evaluate"].config.runtime == "torch"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["engine_fp32", "engine_bf16", "engine_int8", "engine_int8_head"])
def test_a_benchmark_says_what_the_engine_lacks(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels._library.cache_clear()
    monkeypatch.setattr(sources, "library", lambda: None)
    try:
        found = BACKENDS.get(name).prepare(Checkpoint(tmp_path, "model"), threads=1)
    finally:
        kernels._library.cache_clear()
    assert isinstance(found, Unavailable)
    assert "install a C++ compiler" in found.reason


WRONG: dict[str, list[Any]] = {
    "Norm.bias of 4 bytes at 8": [("weight", ctypes.c_void_p), ("bias", ctypes.c_int)],
    "Norm.bias of 8 bytes at 0": [("bias", ctypes.c_void_p), ("weight", ctypes.c_void_p)],
    "Norm of 8 bytes at 0": [("weight", ctypes.c_void_p)],
    "Norm of 24 bytes at 0": [*structures.Norm._fields_, ("scale", ctypes.c_float)],
}


@pytest.mark.skipif(kernels.unavailable() is not None, reason="no kernels here")
@pytest.mark.parametrize("difference", WRONG)
def test_structures_other_than_the_compiled_ones_are_refused(difference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = type("Norm", (ctypes.Structure,), {"_fields_": WRONG[difference]})
    monkeypatch.setattr(structures, "STRUCTURES", (structures.Stage, wrong, structures.Block, structures.Decoder))
    kernels._library.cache_clear()
    try:
        reason = kernels.unavailable()
    finally:
        kernels._library.cache_clear()
    assert reason is not None
    assert f"engine/structures.py has {difference} where the compiled code has Norm" in reason
    assert "\n" not in reason


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_rebuilds_when_a_source_changed_and_only_then(checkout: Path) -> None:
    stamps = [checkout / ".venv" / name for name in (".installed", ".kernels")]
    stamps[0].parent.mkdir()

    def would_run() -> str:
        command = ["make", "--dry-run", ".venv/.kernels"]
        found = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=60, check=True)
        return found.stdout

    for path in (*checkout.rglob("*"), checkout):
        os.utime(path, (1000, 1000))
    for age, stamp in enumerate(stamps, start=2000):
        stamp.touch()
        os.utime(stamp, (age, age))
    assert "up to date" in would_run()
    for path in (
        checkout / "engine" / "native" / "weight.h",
        checkout / "setup.py",
        checkout / "engine" / "sources.py",
    ):
        os.utime(path, (3000, 3000))
        assert "build_ext --inplace" in would_run(), path
        assert "pip install" not in would_run()
        os.utime(path, (1000, 1000))
    os.utime(checkout / "engine" / "kernels.py", (3000, 3000))
    assert "up to date" in would_run()


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_without_a_compiler_tries_again_the_next_time(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / ".installed").touch()
    variables = os.environ | {"CC": "false", "CXX": "false"}
    command = ["make", f"BIN={Path(sys.executable).parent}", ".venv/.kernels"]
    found = subprocess.run(command, cwd=checkout, env=variables, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert not (checkout / ".venv" / ".kernels").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_help_lists_every_target() -> None:
    shown = subprocess.run(["make", "help"], cwd=PROJECT, capture_output=True, text=True, timeout=60, check=True).stdout
    text = (PROJECT / "Makefile").read_text().replace("\\\n", " ")
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony
    listed = re.findall(r"^  make (\S+) +\S", shown, re.MULTILINE)
    assert sorted(listed) == sorted(phony[1].split())
    assert {"run", "test", "sanitize"} <= set(listed)


def test_the_console_command_is_the_engine(capsys: pytest.CaptureFixture[str]) -> None:
    scripts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]
    command = metadata.EntryPoint("squarehead-engine", scripts["squarehead-engine"], "console_scripts").load()
    with pytest.raises(SystemExit, match="0"):
        command(["--help"])
    assert "bench-layers" in capsys.readouterr().out
    assert (PROJECT / "engine" / "py.typed").exists()


@pytest.mark.skipif(shutil.which("make") is None or shutil.which("git") is None, reason="no make or git here")
def test_kernels_are_sanitized_only_where_their_sources_changed(checkout: Path) -> None:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *arguments], cwd=checkout, check=True, capture_output=True, timeout=60)

    def sanitizes() -> bool:
        command = ["make", "sanitize-changed", "SANITIZED=none", "MAKE=echo sanitizing with"]
        shown = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=60, check=True).stdout
        assert ("sanitizing with" in shown) != ("nothing to sanitize" in shown), shown
        return "sanitizing with" in shown

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message=first")
    assert sanitizes(), "nothing tells what changed"
    git("tag", "v1")
    (checkout / "README.md").write_text("changed")
    git("commit", "--quiet", "--all", "--message=second")
    assert not sanitizes()
    (checkout / "engine" / "native" / "weight.h").open("a").write("// changed\n")
    assert sanitizes()
    git("commit", "--quiet", "--all", "--message=third")
    assert sanitizes()
