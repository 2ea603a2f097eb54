"""Fixtures of the tests of the engine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engine import files, kernels
from tests import tiny
from tests.tiny_engine import packed_model


@pytest.fixture(params=kernels.ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set that this CPU has."""
    if request.param not in kernels.available_isas():
        pytest.skip(f"this CPU has no {request.param}")
    return str(request.param)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine folder nobody changes."""
    folder = tmp_path_factory.mktemp("exported")
    files.save(packed_model(), folder / "engine", tiny.save_tokenizer(folder / "tokenizer"))
    return folder / "engine"


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(exported, tmp_path / "engine"))
