"""Processes that share MLflow's database: jobs side by side, killed ones, the dashboard."""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote

import pytest

from pipeline.plan import Stores
from pipeline.record.status import Status
from pipeline.tracking import dashboard
from pipeline.tracking.tracker import open_sweep_tracker
from tests.running import processes
from tests.serving import background, free_port, get
from tests.tracked import Told, make_job, only, tracking, view_of


def test_what_a_killed_process_left_running_is_closed_when_its_stage_starts_again(runs: Path) -> None:
    ready = processes().Event()
    process = processes().Process(target=start_and_hang, args=(runs, ready))
    process.start()
    try:
        told = Told(runs, make_job(runs, 1))
        assert ready.wait(60)
        view = view_of(runs)
        assert len(view.runs.search("RUNNING", kind="job")) == 2
        process.kill()
        process.join()
        told.tracker.start_stage("finetune", "finetune", "ef" * 32, {})
        assert sorted(run.info.status for run in view.runs.search(kind="stage")) == ["KILLED", "RUNNING"]
        told.end()
    finally:
        process.kill()
    Told(runs, make_job(runs, 2)).end()
    assert sorted(run.info.status for run in view.runs.search(kind="job")) == ["FINISHED", "FINISHED", "KILLED"]
    assert only(view.runs.search(kind="sweep")).info.status == "FAILED"


def test_processes_that_touch_a_new_database_at_once_share_experiment_and_sweep(tmp_path: Path) -> None:
    together = processes().Barrier(4)
    jobs = [processes().Process(target=run_job, args=(tmp_path, number, together)) for number in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
    assert [job.exitcode for job in jobs] == [0] * 4
    view = view_of(tmp_path)
    assert sorted(found.name for found in view.runs.client.search_experiments()) == ["Default", "squarehead"]
    assert only(view.runs.search(kind="sweep")).info.status == "FINISHED"
    assert len(view.runs.search("FINISHED", kind="job")) == 4
    maker = only(view.runs.search(kind="stage")).info.run_id
    assert all(maker in run.data.tags["mlflow.note.content"] for run in view.runs.search(kind="job"))


def test_dashboard_serves_the_experiment_on_this_machine_and_ends_with_ctrl_c(runs: Path) -> None:
    told = Told(runs, make_job(runs, sparsity="0.5", distill="kd"))
    told.node("evaluate", "evaluate", {})
    told.note("prune", "prune", "ab" * 32, Status.DONE, {"sparsity": 0.5})
    told.end()
    open_sweep_tracker(tracking(), "29990101-000000", Stores.below(runs, runs), {"sweep": "29990101-000000"}, print)
    port = free_port()
    command = [sys.executable, "-m", "pipeline.dashboard", "--runs", str(runs), "--port", str(port), "--no-open"]
    with background(command) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        experiment = view_of(runs).runs.experiment
        assert f"http://127.0.0.1:{port}/#/metric?runs=" in line, "of the sweep that has come to something"
        assert quote('["loss/kd"]') in line
        shown = get(f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=squarehead")
        assert json.loads(shown)["experiment"]["experiment_id"] == experiment
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    with pytest.raises(URLError):
        get(f"http://127.0.0.1:{port}/health")


def test_dashboard_names_a_port_that_is_taken(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert dashboard.main(["--runs", str(runs), "--port", str(port), "--no-open"]) == 2
    assert capsys.readouterr().err == f"--port: port {port} of 127.0.0.1 is taken or not allowed; choose another\n"


def run_job(runs: Path, number: int, together: Any) -> None:
    together.wait(60)
    told = Told(runs, make_job(runs, number))
    told.node("dense")
    told.end()


def start_and_hang(runs: Path, ready: Any) -> None:
    run = Told(runs, make_job(runs, 0)).tracker.start_stage("finetune", "finetune", "ef" * 32, {})
    run.metrics({"loss": 1.0}, 0, time.time())
    ready.set()
    time.sleep(600)
