"""Fixtures of the tests of stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.contracts import Artifact, Checkpoint
from tests import tiny
from tests.recording import RecordingLog
from tests.tiny import text_data
from tests.tiny_training import sparse


@pytest.fixture
def log(tmp_path: Path) -> RecordingLog:
    return RecordingLog(tmp_path / "resume")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of packages and digests of the test's own."""
    monkeypatch.setenv("SQUAREHEAD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which pip, and it alone, looks for wheels."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in hub format that no test changes."""
    return tiny.save_model(tmp_path_factory.mktemp("source") / "tiny-llama")


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    """A sparse student, its dense teacher and texts, for one test to use and to change."""
    return {
        "model": sparse(tmp_path / "sparse"),
        "teacher": Checkpoint(tiny.save_model(tmp_path / "dense", seed=1), "dense"),
        "data": text_data(tmp_path / "texts"),
    }
