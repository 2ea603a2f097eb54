from __future__ import annotations

from pathlib import Path

import pytest

from tests.running import Place, Sources, make_sources


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return make_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture
def place(sources: Sources, tmp_path: Path) -> Place:
    return Place(sources, tmp_path)
