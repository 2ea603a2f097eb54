"""What MLflow shows of jobs and sweeps: their tree, metrics to compare, models, data sets."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipeline.plan import Stores
from pipeline.record.outcome import write_outcomes
from pipeline.record.status import Status
from pipeline.tracking.relog import relog
from pipeline.tracking.tracker import open_sweep_tracker
from tests.tracked import SWEEP, Told, artifacts, history, make_job, only, tracking, view_of


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
    told = Told(runs, make_job(runs), tracking(system_metrics=True))
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
    before = open_sweep_tracker(tracking(), SWEEP, Stores.below(runs, runs / "cache"), {"sweep": SWEEP}, print)
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


def test_what_jobs_were_told_to_differ_in_is_where_mlflow_s_comparison_begins(runs: Path) -> None:
    losses = {"ce": (0, 0), "kd": (1, 0), "squarehead": (0, 1)}
    for number, (loss, (kd, squarehead)) in enumerate(losses.items()):
        plain = make_job(runs, number, distill=loss, sparsity=str(0.5 + number / 10))
        settings = {"distill": {"ce": 1, "kd": kd, "squarehead": squarehead}, "training": {"lr": 0.1 * (number + 1)}}
        Told(runs, replace(plain, config=plain.config | settings, choices={"distill": loss})).end()
    found = [run.data.params for run in view_of(runs).runs.search(kind="job")]
    differing = sorted(key for key in found[0] if len({params[key] for params in found}) > 1)
    assert differing == ["distill", "sparsity", "training.lr"]  # MLflow's first three: by name
