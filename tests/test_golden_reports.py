"""Reports say what they said: every value of report.json, and every figure of every table."""

import json
from pathlib import Path

import pytest

from tests import golden_reports

KEPT = json.loads(golden_reports.FILE.read_text(encoding="utf-8")) if golden_reports.FILE.exists() else {}


@pytest.mark.parametrize("name", golden_reports.SCENES)
def test_a_report_says_what_it_said(name: str, tmp_path: Path) -> None:
    found = golden_reports.said(golden_reports.report(name, tmp_path))
    for part, said in KEPT[name]["json"].items():
        assert found["json"][part] == said, part
    assert found["json"].keys() == KEPT[name]["json"].keys()
    for table, rows in KEPT[name]["tables"].items():
        assert found["tables"].get(table) == rows, table
