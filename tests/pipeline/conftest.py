"""Fixtures of the tests of the pipeline."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.store.store import Store
from pipeline.tracking.server import connect


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs" / "store")


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new MLflow database, which takes seconds to make."""
    runs = tmp_path_factory.mktemp("template")
    connect("", "template", runs)
    return runs / "mlflow.db"


@pytest.fixture
def runs(tmp_path: Path, database: Path) -> Path:
    """A folder of runs with an empty MLflow database."""
    folder = tmp_path / "runs"
    folder.mkdir()
    shutil.copy(database, folder / "mlflow.db")
    return folder
