from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.tracking.server import connect
from tests.running import Place, Sources, make_sources


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return make_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture
def place(sources: Sources, tmp_path: Path) -> Place:
    return Place(sources, tmp_path)


@pytest.fixture(scope="session")
def small_run(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run without int8 and benchmark, and what it made; no test changes it."""
    made = Place(sources, tmp_path_factory.mktemp("small_run"))
    made.run("quantize=none", "benchmark=none")
    return made


@pytest.fixture
def ran(small_run: Place, place: Place) -> Place:
    """A copy of it."""
    shutil.copytree(small_run.folder, place.folder, dirs_exist_ok=True)
    return place


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new MLflow database, which takes seconds to make; to be copied."""
    runs = tmp_path_factory.mktemp("template")
    connect("", "template", runs)
    return runs / "mlflow.db"
