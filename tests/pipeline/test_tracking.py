"""MLflow shows what was promised: read back through its own client, from real databases and a real server."""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import ProxyHandler, build_opener

import pytest
import yaml

from pipeline.environment import environment
from pipeline.plan import Stores
from pipeline.record.job import Job
from pipeline.record.metrics import of_result
from pipeline.record.outcome import Outcome, Outcomes, write_outcomes
from pipeline.record.status import Status
from pipeline.record.sweep import Sweep
from pipeline.schema import Tracking
from pipeline.store.store import Entry, Slot, Store
from pipeline.tracking import __main__ as command_line
from pipeline.tracking import dashboard
from pipeline.tracking.relog import relog
from pipeline.tracking.server import connect
from pipeline.tracking.terms import NAME_CHARACTERS, PARAM_CHARACTERS, clean_name, short_name
from pipeline.tracking.tracker import RELOG, TrackingLostError, open_sweep_tracker, open_tracker
from pipeline.tracking.view import View
from stages.contracts import UserError
from tests.running import hear_interrupts

SWEEP = "20260101-120000"
DIGEST = "ab" * 32


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new MLflow database, which takes seconds to make."""
    runs = tmp_path_factory.mktemp("template")
    connect("", "template", runs)
    return runs / "mlflow.db"


@pytest.fixture
def runs(tmp_path: Path, database: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    shutil.copy(database, folder / "mlflow.db")
    return folder


def settings(**changed: Any) -> Tracking:
    return Tracking(**({"enabled": True, "uri": "", "experiment": "squarehead", "artifacts": "all"} | changed))


def make_job(runs: Path, number: int = 0, sweep: str = SWEEP, **swept_parameters: str) -> Job:
    folder = runs / "sweeps" / sweep / str(number) if sweep else runs / "jobs" / str(number)
    name = " ".join(f"{key}={value}" for key, value in swept_parameters.items()) or "defaults"
    config = {"seed": 0, "distill": {"ce": 1.0}, "cache": {"folder": str(runs / "cache")}, "data": {"path": "texts"}}
    return Job(name=name, sweep=sweep, folder=folder, config=config, swept_parameters=swept_parameters)


class Told:
    """Runs nodes as the pipeline does, with a curve, facts and a large file each."""

    def __init__(self, runs: Path, job: Job, config: Tracking | None = None) -> None:
        self.said: list[str] = []
        self.job = job
        self.store = Store(runs / "store")
        self.nodes: Outcomes = {}
        self.tracker = open_tracker(config or settings(), job, Stores.below(runs, runs / "cache"), 1, self.said.append)

    def node(
        self, name: str, stage: str = "finetune", config: Mapping[str, Any] | None = None, card: str = "",
        model: str = "cd" * 32,
    ) -> str:  # fmt: skip
        config = {"training": {"lr": 1e-4, "betas": [0.9, 0.999]}} if config is None else config
        fingerprint = hashlib.sha256(json.dumps([stage, config]).encode()).hexdigest()
        with self.store.fill(stage, fingerprint, lambda who: None) as slot:
            if slot.entry:
                entry, status = slot.entry, Status.HIT
            else:
                run = self.tracker.start_stage(name, stage, fingerprint, config)
                curve = [{"step": step, "time": 1e9 + step, "metrics": {"loss": 3.0 - step}} for step in range(3)]
                # The first point was logged by a process that was killed; this one resumed after it.
                if card:
                    (slot.out / "README.md").write_text(card)
                for point in curve[1:]:
                    run.metrics(point["metrics"], point["step"], point["time"])
                entry, status = publish(slot, stage, fingerprint, config, curve, model), Status.DONE
        self.note(name, stage, fingerprint, status, entry.meta["metrics"])
        self.tracker.sync(self.nodes)
        return fingerprint

    def note(self, name: str, stage: str, fingerprint: str, status: Status, metrics: dict[str, float]) -> None:
        self.nodes[name] = Outcome(name, stage, fingerprint, status, 2.5, of_result(stage, metrics, None))

    def end(self) -> None:
        write_outcomes(self.nodes, self.job.folder / "summary.json")
        self.tracker.finish(self.nodes)


def publish(slot: Slot, stage: str, fingerprint: str, config: Mapping[str, Any], curve: list[Any], model: str) -> Entry:
    (slot.out / "weights").mkdir()
    (slot.out / "weights" / "model.safetensors").write_bytes(bytes(1_000_000))
    (slot.out / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in curve))
    return slot.publish(
        {
            "stage": stage,
            "version": "1",
            "fingerprint": fingerprint,
            "config": dict(config),
            "inputs": {"model": model},
            "facts": {"data_digest": DIGEST, "masks_digest": "0" * 64, "precision": "bf16", "counts": {"zeros": 3}},
            "metrics": {"loss": 1.0, "perplexity": 12.5},
            "seconds": 2.5,
            "created": datetime.now(UTC).isoformat(),
            "environment": environment(1),
            "code": "",
        }
    )


def view_of(runs: Path) -> View:
    return View(connect("", "squarehead", runs))


def only(found: list[Any]) -> Any:
    assert len(found) == 1, [run.info.run_name for run in found]
    return found[0]


def history(view: View, run: Any, name: str) -> dict[int, float]:
    return {point.step: point.value for point in view.runs.client.get_metric_history(run.info.run_id, name)}


def artifacts(view: View, run: Any, folder: str | None = None) -> set[str]:
    found = set()
    for file in view.runs.client.list_artifacts(run.info.run_id, folder):
        found |= artifacts(view, run, file.path) if file.is_dir else {file.path}
    return found


def test_stage_run_holds_config_curves_summary_facts_data_environment_and_files(runs: Path) -> None:
    told = Told(runs, make_job(runs))
    fingerprint = told.node("finetune_0.5")
    view = view_of(runs)
    run = only(view.runs.search("FINISHED", kind="stage", fingerprint=fingerprint))
    assert run.info.run_name == "finetune_0.5"
    assert run.data.params == {"training.lr": "0.0001", "training.betas": "[0.9, 0.999]"}
    assert history(view, run, "loss") == {0: 3.0, 1: 2.0, 2: 1.0}
    assert (run.data.metrics["perplexity"], run.data.metrics["loss"], run.data.metrics["seconds"]) == (12.5, 1.0, 2.5)
    tags = run.data.tags
    assert (tags["stage"], tags["node"], tags["input.model"]) == ("finetune", "finetune_0.5", "cd" * 32)
    assert (tags["fact.precision"], json.loads(tags["fact.counts"])) == ("bf16", {"zeros": 3})
    made_with = environment(1)
    assert (tags["env.threads"], tags["env.cpu"]) == ("1", made_with["cpu"])
    assert tags["mlflow.source.git.commit"] == made_with["git"].removesuffix("+dirty")
    data = only(run.inputs.dataset_inputs).dataset
    assert (data.name, json.loads(data.source)["sha256"]) == ("data", DIGEST)
    assert data.digest == DIGEST[: len(data.digest)]
    assert len(data.digest) > 30
    assert artifacts(view, run) == {"meta.json", "metrics.jsonl", "weights/model.safetensors"}


def test_files_on_a_local_artifact_root_are_the_store_s_own(runs: Path) -> None:
    told = Told(runs, make_job(runs))
    entry = told.store.find("finetune", told.node("finetune"))
    assert entry is not None
    run = only(view_of(runs).runs.search(kind="stage"))
    shown = runs / "mlartifacts" / run.info.run_id / "artifacts" / "weights" / "model.safetensors"
    assert shown.samefile(entry.path / "weights" / "model.safetensors")
    assert shown.stat().st_mode & 0o222 == 0


@pytest.mark.parametrize(
    ("artifacts_", "expected"), [("small", {"meta.json", "metrics.jsonl"}), ("none", set())], ids=["small", "none"]
)
def test_artifacts_option_limits_what_is_shown(runs: Path, artifacts_: str, expected: set[str]) -> None:
    told = Told(runs, make_job(runs), settings(artifacts=artifacts_))
    told.node("finetune")
    view = view_of(runs)
    assert artifacts(view, only(view.runs.search("FINISHED", kind="stage"))) == expected


def test_runs_form_a_tree_of_sweep_jobs_and_executed_stages(runs: Path) -> None:
    for number, sparsity in enumerate(("0.5", "0.7")):
        told = Told(runs, make_job(runs, number, sparsity=sparsity))
        told.node("dense", "dense", {"lr": 1.0})
        told.node("prune", "prune", {"sparsity": sparsity})
        told.end()
    view = view_of(runs)
    sweep = only(view.runs.search(kind="sweep"))
    jobs = {run.info.run_name: run for run in view.runs.search(kind="job")}
    assert set(jobs) == {"sparsity=0.5", "sparsity=0.7"}
    assert {run.data.tags["mlflow.parentRunId"] for run in jobs.values()} == {sweep.info.run_id}
    children = {
        name: sorted(
            run.info.run_name for run in view.runs.search(**{"kind": "stage", "mlflow.parentRunId": job.info.run_id})
        )
        for name, job in jobs.items()
    }
    assert children == {"sparsity=0.5": ["dense", "prune"], "sparsity=0.7": ["prune"]}
    assert [run.info.status for run in (sweep, *jobs.values())] == ["FINISHED"] * 3


def test_job_run_tells_of_all_its_nodes_and_links_a_hit_to_its_maker(runs: Path) -> None:
    first = Told(runs, make_job(runs, 0))
    first.node("dense")
    first.end()
    second = Told(runs, make_job(runs, 1, lr="2"))
    second.node("teacher")
    second.end()
    view = view_of(runs)
    maker = only(view.runs.search(kind="stage"))
    job = only(view.runs.search(kind="job", job=f"{SWEEP}/1"))
    assert job.data.metrics == {"seconds": 2.5}
    link = f"runs/{maker.info.run_id}?workflowType=machine_learning"
    assert f"{link}) | hit |" in job.data.tags["mlflow.note.content"]
    assert only(job.inputs.dataset_inputs).dataset.name == "texts"
    assert job.data.params["lr"] == "2"
    assert len(job.data.tags) <= 20
    assert {"summary.json", "job.json", "config.yaml"} <= artifacts(view, job)
    file = runs / "mlartifacts" / job.info.run_id / "artifacts" / "config.yaml"
    assert yaml.safe_load(file.read_text()) == second.job.config


def test_jobs_are_compared_by_what_was_chosen_and_by_metrics_of_the_same_names(runs: Path) -> None:
    for number, sparsity in enumerate((0.5, 0.75)):
        plain = make_job(runs, number, sparsity=str(sparsity), distill="ce")
        config = plain.config | {"sparsity": sparsity, "model": {"family": "t5"}}
        told = Told(runs, replace(plain, config=config, choices={"distill": "ce", "evaluate": "bleu"}))
        level = f"{100 * sparsity:g}"
        told.node("dense", "dense", {"lr": 1.0})
        told.note("one_shot", "prune", "aa" * 32, Status.DONE, {"sparsity": sparsity, "model_sparsity": 0.1})
        told.note(
            f"finetune_{level}", "finetune", "ab" * 32, Status.DONE, {"sparsity": sparsity, "model_sparsity": 0.3}
        )
        told.note(
            "evaluate", "evaluate", "ac" * 32, Status.DONE, {"bleu": 20.0, "bleu_stderr": 0.5, "bleu_recovery": 90.0}
        )
        told.note("evaluate_q", "evaluate", "ad" * 32, Status.DONE, {"bleu": 19.0, "chrf": 50.0})
        measured = {"decode_speedup": 2.0, "decode_tokens_per_second": 9.0}
        speeds = {f"engine_int8.sparse.{key}": value for key, value in measured.items()}
        told.note("benchmark", "benchmark", "ae" * 32, Status.DONE, speeds | {"torch_fp32.dense.decode_speedup": 1.0})
        told.end()
    view = view_of(runs)
    jobs = {run.info.run_name: run.data for run in view.runs.search(kind="job", family="t5", sweep=SWEEP)}
    assert set(jobs) == {"sparsity=0.5 distill=ce", "sparsity=0.75 distill=ce"}
    found = jobs["sparsity=0.75 distill=ce"]
    assert (found.params["sparsity"], found.params["distill"], found.params["seed"]) == ("0.75", "ce", "0")
    expected = {"bleu": 20.0, "bleu_stderr": 0.5, "recovery": 90.0, "int8_bleu": 19.0, "seconds": 15.0}
    expected |= {"sparsity": 0.75, "model_sparsity": 0.3, "best_decode_speedup": 2.0}
    assert found.metrics == expected
    assert found.tags["best_backend"] == "engine_int8"
    sweep = only(view.runs.search(kind="sweep"))
    assert sweep.data.tags["quality"] == "bleu"
    assert history(view, sweep, "bleu/ce") == {50: 20.0, 75: 20.0}
    assert history(view, sweep, "recovery/ce") == {50: 90.0, 75: 90.0}
    assert only(view.runs.search("FINISHED", kind="stage")).data.tags["family"] == "t5"


def test_checkpoints_that_were_evaluated_are_logged_models_with_what_was_measured_of_them(runs: Path) -> None:
    for number in (0, 1):
        told = Told(runs, make_job(runs, number))
        dense = told.node("dense", "dense", {"lr": 1.0})
        told.node("dense_eval", "evaluate", {"windows": 4}, model=dense)
        tuned = told.node("finetune_62.5", "finetune", {"lr": number}, model=dense)
        told.node("evaluate", "evaluate", {"windows": 4, "of": number}, model=tuned)
        told.end()
    view = view_of(runs)
    client, experiment = view.runs.client, view.runs.experiment
    models = {it.tags["fingerprint"]: it for it in client.search_logged_models([experiment])}
    assert [it.name for it in models.values()].count("dense") == 1, "two jobs evaluated the same"
    model = client.get_logged_model(models[tuned].model_id)
    assert (model.name, str(model.status), model.params) == ("finetune_62_5", "READY", {"lr": "1"})
    assert {metric.key: metric.value for metric in model.metrics} == {"loss": 1.0, "perplexity": 12.5}
    assert (Path(model.tags["folder"]) / "meta.json").exists()
    job = only(view.runs.search(kind="job", job=f"{SWEEP}/1"))
    outputs = client.get_run(job.info.run_id).outputs.model_outputs
    assert {output.model_id for output in outputs} == {models[dense].model_id, models[tuned].model_id}
    relog(view, runs)
    assert len(client.search_logged_models([experiment])) == 3


def test_the_load_of_the_machine_is_logged_while_a_job_runs_if_asked_for(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    told = Told(runs, make_job(runs), settings(system_metrics=True))
    view = view_of(runs)
    deadline = time.monotonic() + 30
    while not any(name.startswith("system/cpu") for name in only(view.runs.search(kind="job")).data.metrics):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    told.end()
    assert only(view.runs.search(kind="job")).info.status == "FINISHED"


def test_a_job_tried_again_goes_on_in_its_run(runs: Path) -> None:
    first = Told(runs, make_job(runs))
    first.note("eval", "evaluate", "ef" * 32, Status.FAILED, {})
    first.end()
    told = Told(runs, make_job(runs))
    view = view_of(runs)
    assert {run.info.status for run in (*view.runs.search(kind="job"), *view.runs.search(kind="sweep"))} == {"RUNNING"}
    told.node("dense_eval", "evaluate", {})
    told.end()
    job = only(view.runs.search(kind="job"))
    assert (job.info.status, job.data.metrics["perplexity"]) == ("FINISHED", 12.5)
    assert only(view.runs.search(kind="sweep")).info.status == "FINISHED"


def test_stages_that_run_before_the_jobs_of_a_sweep_stand_under_the_sweep(runs: Path) -> None:
    before = open_sweep_tracker(settings(), SWEEP, Stores.below(runs, runs / "cache"), {"sweep": SWEEP}, print)
    told = Told(runs, make_job(runs))
    told.tracker, own = before, told.tracker
    fingerprint = told.node("dense", "dense", {"lr": 1.0})
    write_outcomes({fingerprint: told.nodes["dense"]}, runs / "sweeps" / SWEEP / "shared.json")
    told.tracker = own
    told.node("dense", "dense", {"lr": 1.0})
    told.end()
    view = view_of(runs)
    stage, sweep = only(view.runs.search(kind="stage")), only(view.runs.search(kind="sweep"))
    assert stage.data.tags["mlflow.parentRunId"] == sweep.info.run_id
    assert stage.info.run_id in only(view.runs.search(kind="job")).data.tags["mlflow.note.content"]


def test_the_cards_of_sources_stand_with_the_job(runs: Path) -> None:
    told = Told(runs, make_job(runs))
    told.node("model", "model", {}, card="# A model")
    told.end()
    view = view_of(runs)
    job = only(view.runs.search(kind="job"))
    assert "cards/model/README.md" in artifacts(view, job)


def test_hit_unknown_to_mlflow_is_shown_from_the_store(runs: Path) -> None:
    untracked = Told(runs, make_job(runs, 0), settings(enabled=False))
    untracked.node("dense")
    assert not (runs / "mlflow.lock").exists()
    told = Told(runs, make_job(runs, 1))
    told.node("dense")
    view = view_of(runs)
    run = only(view.runs.search("FINISHED", kind="stage"))
    assert history(view, run, "loss") == {0: 3.0, 1: 2.0, 2: 1.0}
    assert artifacts(view, run) == {"meta.json", "metrics.jsonl", "weights/model.safetensors"}


def test_failed_stage_keeps_its_curve_and_traceback_and_fails_job_and_sweep(runs: Path) -> None:
    told = Told(runs, make_job(runs))
    run = told.tracker.start_stage("finetune", "finetune", "ef" * 32, {})
    run.metrics({"loss": 7.0}, 4, time.time())
    try:
        raise ValueError("the disk is made of cheese")
    except ValueError as error:
        run.fail(error)
    told.note("finetune", "finetune", "ef" * 32, Status.FAILED, {})
    told.end()
    view = view_of(runs)
    stage = only(view.runs.search("FAILED", kind="stage"))
    assert history(view, stage, "loss") == {4: 7.0}
    assert stage.data.tags["error"] == "ValueError: the disk is made of cheese"
    report = runs / "mlartifacts" / stage.info.run_id / "artifacts" / "error.txt"
    assert "test_failed_stage_keeps" in report.read_text()
    assert {only(view.runs.search(kind=kind)).info.status for kind in ("job", "sweep")} == {"FAILED"}


def test_what_jobs_were_told_to_differ_in_is_where_mlflow_s_comparison_begins(runs: Path) -> None:
    losses = {"ce": (0, 0), "kd": (1, 0), "squarehead": (0, 1)}
    for number, (loss, (kd, squarehead)) in enumerate(losses.items()):
        plain = make_job(runs, number, distill=loss, sparsity=str(0.5 + number / 10))
        settings = {"distill": {"ce": 1, "kd": kd, "squarehead": squarehead}, "training": {"lr": 0.1 * (number + 1)}}
        Told(runs, replace(plain, config=plain.config | settings, choices={"distill": loss})).end()
    found = [run.data.params for run in view_of(runs).runs.search(kind="job")]
    differing = sorted(key for key in found[0] if len({params[key] for params in found}) > 1)
    assert differing == ["distill", "sparsity", "training.lr"]  # MLflow's first three: by name


def test_names_and_values_beyond_mlflow_s_limits_are_fitted(runs: Path) -> None:
    told = Told(runs, make_job(runs))
    run = told.tracker.start_stage("n", "prune", "ef" * 32, {"skip": "x" * 7000, "empty": "", "none": None})
    run.metrics({"layers[0]:α/../error (%)": 1.0, "../": 2.0}, 0, time.time())
    run.fail(KeyboardInterrupt())
    found = only(view_of(runs).runs.search("KILLED", kind="stage"))
    assert found.data.metrics == {"layers_0___/error ___": 1.0, "_": 2.0}
    assert found.data.params["skip"] == "x" * (PARAM_CHARACTERS - 3) + "..."
    assert (found.data.params["empty"], found.data.params["none"]) == ("", "null")


def test_long_names_that_begin_alike_stay_different_and_within_mlflow_s_limit(runs: Path) -> None:
    names = ["x" * 300 + end for end in "ab"]
    short = {short_name(name) for name in names} | {clean_name(name) for name in names}
    assert len(short) == 2
    assert {len(name) for name in short} == {NAME_CHARACTERS}
    created = view_of(runs).runs.create("job", names[0], {})
    assert view_of(runs).runs.client.get_run(created).info.run_name == short_name(names[0])


@pytest.mark.parametrize("name", ["50%20", "a#b?c"])
def test_a_folder_with_signs_of_addresses_is_used_and_no_other_is_made(
    name: str, tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    shutil.copy(database, tmp_path / name / "mlflow.db")
    runs = connect("", "squarehead", Path(name))
    runs.create("job", "x", {})
    assert len(runs.search(kind="job")) == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_more_values_than_one_call_takes_all_arrive(runs: Path) -> None:
    told = Told(runs, make_job(runs))
    run = told.tracker.start_stage("n", "prune", "ef" * 32, {f"p{number}": number for number in range(230)})
    for step in range(450):
        run.metrics({"a": step, "b": step, "c": step}, step, time.time())
    run.fail(RuntimeError())
    view = view_of(runs)
    found = only(view.runs.search(kind="stage"))
    assert len(found.data.params) == 230
    assert all(history(view, found, name) == {step: step for step in range(450)} for name in "abc")


def test_relog_rebuilds_the_view_and_adds_nothing_twice(runs: Path, database: Path) -> None:
    for number, status in enumerate((True, False)):
        told = Told(runs, make_job(runs, number, sparsity=str(number)))
        told.node("dense", "dense", {"lr": 1.0})
        told.node(f"prune_{number}", "prune", {"sparsity": number})
        if not status:
            told.note("finetune", "finetune", "ef" * 32, Status.FAILED, {})
        told.end()
    before = open_sweep_tracker(settings(), SWEEP, Stores.below(runs, runs / "cache"), {"sweep": SWEEP}, print)
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


def test_server_that_is_away_is_told_in_seconds_with_the_option_and_no_password(tmp_path: Path) -> None:
    uri = f"http://user:secret@127.0.0.1:{free_port()}"
    started = time.monotonic()
    with pytest.raises(UserError, match=r"^tracking.uri: cannot use MLflow at http://127.0.0.1:\d+: ") as caught:
        open_tracker(settings(uri=uri), make_job(tmp_path), Stores.below(tmp_path, tmp_path), 1, print)
    assert time.monotonic() - started < 20
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_experiment_deleted_in_mlflow_is_an_error_that_names_the_option(runs: Path) -> None:
    view = view_of(runs)
    view.runs.client.delete_experiment(view.runs.experiment)
    with pytest.raises(UserError, match=r"^tracking\.experiment: 'squarehead' was deleted"):
        open_tracker(settings(), make_job(runs), Stores.below(runs, runs), 1, print)


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
        told = Told(runs, make_job(runs), settings(uri=f"http://127.0.0.1:{port}"))
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


def test_dashboard_serves_the_experiment_on_this_machine_and_ends_with_ctrl_c(runs: Path) -> None:
    told = Told(runs, make_job(runs, sparsity="0.5", distill="kd"))
    told.node("evaluate", "evaluate", {})
    told.note("prune", "prune", "ab" * 32, Status.DONE, {"sparsity": 0.5})
    told.end()
    open_sweep_tracker(settings(), "29990101-000000", Stores.below(runs, runs), {"sweep": "29990101-000000"}, print)
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


# ---- processes ----


@functools.cache
def processes() -> Any:
    """Starts processes from one that has MLflow imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow", "tests.pipeline.test_tracking"])
    return context


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


@contextmanager
def background(command: list[str], **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A process and its children, ended with the block."""
    process = subprocess.Popen(
        command,
        env={**os.environ, **variables},
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_answer(process: subprocess.Popen[str], url: str) -> None:
    deadline = time.monotonic() + 90
    while process.poll() is None and time.monotonic() < deadline:
        try:
            get(url)
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"no answer from {url}")


def get(url: str) -> bytes:
    with build_opener(ProxyHandler({})).open(url, timeout=5) as answer:
        found: bytes = answer.read()
        return found
