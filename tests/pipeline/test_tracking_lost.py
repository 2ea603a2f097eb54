"""What becomes of the records where MLflow fails, is away or was deleted; `relog` makes up for it."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.plan import Stores
from pipeline.record.outcome import write_outcomes
from pipeline.record.status import Status
from pipeline.record.sweep import Sweep
from pipeline.tracking import __main__ as command_line
from pipeline.tracking.relog import relog
from pipeline.tracking.tracker import RELOG, TrackingLostError, open_sweep_tracker, open_tracker
from pipeline.tracking.view import View
from stages.contracts import UserError
from tests.serving import await_answer, background, free_port
from tests.tracked import SWEEP, Told, artifacts, history, make_job, only, tracking, view_of


def test_relog_rebuilds_the_view_and_adds_nothing_twice(runs: Path, database: Path) -> None:
    for number, status in enumerate((True, False)):
        told = Told(runs, make_job(runs, number, sparsity=str(number)))
        told.node("dense", "dense", {"lr": 1.0})
        told.node(f"prune_{number}", "prune", {"sparsity": number})
        if not status:
            told.note("finetune", "finetune", "ef" * 32, Status.FAILED, {})
        told.end()
    before = open_sweep_tracker(tracking(), SWEEP, Stores.below(runs, runs / "cache"), {"sweep": SWEEP}, print)
    told.tracker = before
    shared = told.node("data", "calibrate", {"samples": 1})
    planned = Sweep(runs / "sweeps" / SWEEP, [], "", "", "", "", 1, "", [])
    planned.write()
    write_outcomes({shared: told.nodes["data"]}, planned.folder / "shared.json")
    alone = Told(runs, make_job(runs, 7, sweep=""))
    alone.node("dense", "dense", {"lr": 1.0})
    alone.end()
    live = told_by(view_of(runs))
    shutil.rmtree(runs / "mlartifacts")
    shutil.copy(database, runs / "mlflow.db")
    view = view_of(runs)
    assert relog(view, runs) == {"sweep": 1, "job": 3, "stage": 4}
    assert told_by(view) == live
    (sweep,) = view.runs.search(kind="sweep")
    assert sweep.info.start_time <= sweep.info.end_time
    assert relog(view, runs) == {"sweep": 0, "job": 0, "stage": 0}
    assert told_by(view) == live


def told_by(view: View) -> dict[str, Any]:
    """All that the view tells, with names in the place of ids, and without the clock."""
    runs = view.runs.search()
    names = {run.info.run_id: run.info.run_name for run in runs}

    def named(text: str) -> str:
        for run_id, name in names.items():
            text = text.replace(run_id, name)
        return text

    return {
        run.info.run_name: (
            run.info.status,
            {key: named(value) for key, value in run.data.tags.items() if key != "process"},
            run.data.params,
            {name: history(view, run, name) for name in run.data.metrics},
            [item.dataset.digest for item in run.inputs.dataset_inputs],
            artifacts(view, run),
        )
        for run in runs
    }


def test_database_that_fails_midway_costs_no_result_and_relog_makes_up_for_it(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Told(runs, make_job(runs))
    told.node("dense", "dense", {"lr": 1.0})
    intact = (runs / "mlflow.db").read_bytes()
    (runs / "mlflow.db").write_bytes(b"not a database " * 10_000)
    told.node("prune", "prune", {"sparsity": 0.5})
    told.node("finetune")
    with pytest.raises(TrackingLostError, match=re.escape(RELOG)):
        told.end()
    assert only(told.said).startswith("MLflow failed, the job goes on without it: ")
    assert len(list(told.store.entries())) == 3

    (runs / "mlflow.db").write_bytes(intact)
    assert command_line.main(["relog", "--runs", str(runs)]) == 0
    assert capsys.readouterr().out == "made 0 sweep runs, 0 job runs, 2 stage runs\n"
    view = view_of(runs)
    assert {run.info.run_name for run in view.runs.search("FINISHED", kind="stage")} == {"dense", "prune", "finetune"}
    job = only(view.runs.search("FINISHED", kind="job"))
    assert job.data.metrics == {"seconds": 7.5}


def test_server_that_is_away_is_told_in_seconds_with_the_option_and_no_password(tmp_path: Path) -> None:
    uri = f"http://user:secret@127.0.0.1:{free_port()}"
    started = time.monotonic()
    with pytest.raises(UserError, match=r"^tracking.uri: cannot use MLflow at http://127.0.0.1:\d+: ") as caught:
        open_tracker(tracking(uri=uri), make_job(tmp_path), Stores.below(tmp_path, tmp_path), 1, print)
    assert time.monotonic() - started < 20
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_experiment_deleted_in_mlflow_is_an_error_that_names_the_option(runs: Path) -> None:
    view = view_of(runs)
    view.runs.client.delete_experiment(view.runs.experiment)
    with pytest.raises(UserError, match=r"^tracking\.experiment: 'squarehead' was deleted"):
        open_tracker(tracking(), make_job(runs), Stores.below(runs, runs), 1, print)


def test_files_are_uploaded_to_a_server_and_its_end_midway_costs_no_result(tmp_path: Path, database: Path) -> None:
    served, runs, port = tmp_path / "server", tmp_path / "runs", free_port()
    served.mkdir()
    shutil.copy(database, served / "mlflow.db")
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{served / 'mlflow.db'}", "--artifacts-destination", str(served / "files")),
    ]
    with background(command, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false") as server:
        await_answer(server, f"http://127.0.0.1:{port}/health")
        told = Told(runs, make_job(runs), tracking(uri=f"http://127.0.0.1:{port}"))
        told.node("dense", "dense", {"lr": 1.0})
        files = {path.name: path.stat().st_size for path in (served / "files").rglob("*") if path.is_file()}
        assert set(files) == {"meta.json", "metrics.jsonl", "model.safetensors", "config.yaml"}
        assert files["model.safetensors"] == 1_000_000
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"  # the test need not wait as long as a user would
    try:
        told.node("prune", "prune", {"sparsity": 0.5})
        with pytest.raises(TrackingLostError):
            told.end()
    finally:
        del os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]
    assert len(told.said) == 1
    assert len(list(told.store.entries())) == 2
