"""Fixtures of the tests of the pipeline."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from joblib.externals.loky import get_reusable_executor

from pipeline.store.store import Store


@pytest.fixture
def workers() -> Iterator[None]:
    """Ends those that joblib's launcher has left in this process."""
    yield
    get_reusable_executor().shutdown(wait=True, kill_workers=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs" / "store")


@pytest.fixture
def runs(tmp_path: Path, database: Path) -> Path:
    """A folder of runs with an empty MLflow database."""
    folder = tmp_path / "runs"
    folder.mkdir()
    shutil.copy(database, folder / "mlflow.db")
    return folder
