"""The drawing of a configuration's DAG, docs/dag.svg."""

from __future__ import annotations

import re

import pytest

from pipeline.draw import draw
from pipeline.recipes import build
from tests.composed import CONF, config


def test_the_committed_drawing_is_that_of_the_quickstart() -> None:
    committed = (CONF.parent / "docs" / "dag.svg").read_text(encoding="utf-8")
    found = draw(build(config("experiment=quickstart")))
    assert committed == found, "python -m pipeline.draw experiment=quickstart > docs/dag.svg"


@pytest.mark.parametrize("options", [[], ["experiment=whisper_asterisk"], ["recipe=dense"], ["experiment=paper/t5"]])
def test_each_node_has_a_place_of_its_own(options: list[str]) -> None:
    graph = build(config(*options))
    drawn = draw(graph)
    assert set(re.findall(r'fill="#111">([^<]+)<', drawn)) == set(graph)
    places = re.findall(r'<rect x="(\d+)" y="(\d+)"', drawn)
    assert len(set(places)) == len(graph)
    assert all(int(x) >= 0 and int(y) >= 0 for x, y in places)
