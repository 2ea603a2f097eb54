"""Lines of JSON that hold characters at which Python's `splitlines` would cut them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages import json_lines


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_line_ends_at_a_newline_alone(tmp_path: Path, mark: str) -> None:
    rows = [{"text": f"one{mark}two\nthree"}, {"text": "four"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert list(json_lines.read(path)) == rows
