"""What MLflow shows of stages, read back through its own client from real databases."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from pipeline.environment import environment
from pipeline.record.status import Status
from pipeline.tracking.server import connect
from pipeline.tracking.terms import NAME_CHARACTERS, PARAM_CHARACTERS, clean_name, short_name
from tests.tracked import DIGEST, Told, artifacts, history, make_job, only, tracking, view_of


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
    told = Told(runs, make_job(runs), tracking(artifacts=artifacts_))
    told.node("finetune")
    view = view_of(runs)
    assert artifacts(view, only(view.runs.search("FINISHED", kind="stage"))) == expected


def test_the_cards_of_sources_stand_with_the_job(runs: Path) -> None:
    told = Told(runs, make_job(runs))
    told.node("model", "model", {}, card="# A model")
    told.end()
    view = view_of(runs)
    job = only(view.runs.search(kind="job"))
    assert "cards/model/README.md" in artifacts(view, job)


def test_hit_unknown_to_mlflow_is_shown_from_the_store(runs: Path) -> None:
    untracked = Told(runs, make_job(runs, 0), tracking(enabled=False))
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
