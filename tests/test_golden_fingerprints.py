"""Results that users have stored stay hits: every node of every experiment keeps its fingerprint."""

import json
from pathlib import Path

import pytest

from tests import golden


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    return golden.fingerprints(Path(tmp_path_factory.mktemp("empty")))


KEPT = json.loads(golden.FILE.read_text(encoding="utf-8"))


def test_every_experiment_has_its_fingerprints_kept(found):
    assert len(golden.EXPERIMENTS) >= 28
    assert set(found) == set(KEPT) == {*golden.EXPERIMENTS, *golden.VARIANTS}


@pytest.mark.parametrize("name", KEPT)
def test_stored_results_stay_hits(found, name):
    assert found[name] == KEPT[name]
