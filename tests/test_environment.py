"""The record of what a result was made with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from engine.cpu import cores
from pipeline.environment import PACKAGES, environment, git_commit


def test_environment_names_versions_machine_threads_and_commit() -> None:
    found = environment(threads=3)
    assert tuple(found["packages"]) == PACKAGES
    assert found["packages"]["torch"] == torch.__version__
    assert found["threads"] == 3
    assert found["cpu"]
    assert found["cores"] == cores() >= 1
    assert found["memory_gb"] > 0
    assert json.loads(json.dumps(found)) == found


def test_environment_needs_neither_torch_nor_mlflow() -> None:
    code = (
        "import sys, pipeline.tracking.tracker as t; t.environment(1); "
        "sys.exit(bool({'torch', 'mlflow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_commit_is_the_checkout_s_own_and_tells_of_changes(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        settings = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *settings, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    assert git_commit(tmp_path) == ""
    git("init", "-q")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "file").write_text("1")
    git("add", ".")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    assert git_commit(tmp_path) == commit
    assert git_commit(tmp_path / "inside") == ""
    (tmp_path / "inside" / "file").write_text("2")
    assert git_commit(tmp_path) == f"{commit}+dirty"
