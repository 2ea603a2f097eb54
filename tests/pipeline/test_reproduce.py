"""`make reproduce`: lists the tables of the paper; runs one, and reports it with the published figures."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import __main__ as command_line
from pipeline import report, reproduce
from stages.contracts import UserError
from tests.paper_tables import JOBS
from tests.running import Place, call

MAINS = {"pipeline": command_line.main, "pipeline.report": report.main}


def start(place: Place, *words: str) -> subprocess.CompletedProcess[str]:
    return call(list(words), place.folder, reproduce.main)


def call_here(command: list[str]) -> int:
    """In the place of `subprocess.call`: a command of the pipeline in this process."""
    python, flag, module, *words = command
    assert (python, flag) == (sys.executable, "-m")
    found = call(words, Path.cwd(), MAINS[module])
    print(found.stdout)
    print(found.stderr, file=sys.stderr)
    return found.returncode


def test_the_list_has_every_table_with_its_jobs_needs_and_time() -> None:
    found = reproduce.tables()
    assert {table.name: table.jobs for table in found} == JOBS
    for table in found:
        assert table.what.endswith("."), table
        assert table.needs, table
        assert table.takes, table
    console = Console(file=io.StringIO(), width=200)
    reproduce.show(found, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "local/speed" in shown
    assert "about 15 minutes of two cores" in shown
    assert "Needs a model hub" in shown


def test_an_unknown_table_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"no table 'paper/opt'; there are: local/llm, .*paper/whisper_ce_12"):
        reproduce.reproduce("paper/opt", [])


def test_a_table_is_run_and_reported_in_one_folder(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "call", call_here)
    small = [
        *place.small,
        "data=text",
        f"data.path={place.sources.texts}",
        "tracking=none",
        "sparsity=0.5",
        "finetune.steps=0",
    ]
    line = ["local/speed", *small, "benchmark.backends=[torch_fp32]"]
    planned = start(place, *line, "dry_run=true")
    assert planned.returncode == 0, planned.stderr
    assert "estimated: " in planned.stdout
    assert not (place.runs / "sweeps").exists()

    found = start(place, *line)
    assert found.returncode == 0, found.stdout + found.stderr
    (folder,) = (place.runs / "sweeps").iterdir()
    assert (folder / "0" / "summary.json").exists()
    assert (folder / "report.html").exists()
    assert f"{folder / 'report.md'}" in found.stdout
