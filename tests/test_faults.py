"""Kills, damage, credentials, clocks and odd places: nothing is lost, nothing damaged is used, one line says what."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from pipeline import credentials, process
from pipeline.record.files import sealed
from pipeline.store import record
from pipeline.store.__main__ import main as store_main
from pipeline.store.store import Store
from pipeline.tracking import database
from pipeline.tracking.server import connect
from stages.contracts import UserError
from tests.running import PROJECT, Place, processes

SMALL = ["quantize=none", "benchmark=none", "tracking=none"]
PASSWORD = "s3cretPW"


def damage(path: Path, at: float = 0.5) -> None:
    """One flipped bit; the size stays."""
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[int(len(content) * at) | 3] ^= 0x40
    path.write_bytes(content)


# ---- damaged inputs ----

INPUTS = [
    ("dense", "model.safetensors", "dense_eval"),
    ("dense", "config.json", "dense_eval"),
    ("prune", "masks.safetensors", "finetune_50"),
    ("prune", "model.safetensors", "finetune_50"),
    ("calibrate", "samples.safetensors", "prune_50"),
    ("data", "train.jsonl", "finetune_50"),
    ("data", "test.jsonl", "dense_eval"),
    ("model", "tokenizer.json", "dense_eval"),
    ("model", "model.safetensors", "dense"),
]


@pytest.mark.parametrize(("stage", "file", "reader"), INPUTS)
def test_a_damaged_input_is_made_again_before_it_is_used(stage: str, file: str, reader: str, ran: Place) -> None:
    stores = (Store(ran.runs / "store"), Store(ran.folder / "cache" / "store"))
    by_stage = {entry.stage: entry for store in stores for entry in store.entries()}
    kept = {name: entry.content for name, entry in by_stage.items()}
    damage(by_stage[stage].path / file)
    again = ran.run(*SMALL, f"force=[{reader}]", f"until={reader}")
    assert {outcome.status for outcome in again.values()} <= {"hit", "done"}, again
    assert again[reader].status == "done"
    remade = {name: entry.content for store in stores for entry in store.entries() for name in [entry.stage]}
    assert remade[stage] == kept[stage], "what is made again is what it was"
    assert not [line for store in stores for entry in store.entries() if (line := store.corruption(entry))]


@pytest.mark.parametrize("file", ["metrics.json", "windows.jsonl", "benchmark.json"])
def test_a_damaged_measurement_is_made_again_before_it_is_shown(file: str, place: Place) -> None:
    line = ["tracking=none", "sparsity=0", "distill=ce", "quantize=none", "benchmark.backends=[torch_fp32]"]
    stage = "benchmark" if file == "benchmark.json" else "evaluate"
    line += ["until=benchmark" if stage == "benchmark" else "until=dense_eval"]
    place.run(*line)
    store = Store(place.runs / "store")
    (entry,) = store.entries(stage)
    damage(entry.path / file)
    again = place.run(*line)
    assert {outcome.status for outcome in again.values() if outcome.stage != stage} == {"hit"}
    assert {outcome.status for outcome in again.values() if outcome.stage == stage} == {"done"}
    (entry,) = store.entries(stage)
    assert not record.verify(entry.path)


def test_what_came_of_damage_by_an_earlier_version_goes_with_it(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.run(*SMALL, "until=prune_50")
    store = Store(place.runs / "store")
    entries = {entry.stage: entry for entry in store.entries()}
    meta_file = entries["prune"].path / record.META  # as a version before the comparison wrote it
    meta = json.loads(meta_file.read_text())
    meta.pop("digest"), meta.pop("inputs_compared")
    meta_file.chmod(0o644)
    meta_file.write_text(json.dumps(sealed(meta)))
    damage(entries["dense"].path / "model.safetensors")
    assert store_main(["--runs", str(place.runs), "verify", "--remove"]) == 1
    said = capsys.readouterr().out
    assert "1 damaged, 1 in doubt" in said
    assert "did not compare its inputs" in said
    left = {entry.stage for entry in store.entries()}
    assert "prune" not in left
    assert "dense" not in left
    assert "calibrate" in left, "what did not come of it stays"


def test_what_a_kill_left_of_a_published_result_is_cleared_by_the_next_line(ran: Place) -> None:
    outcomes = ran.run(*SMALL, "until=dense")
    store = Store(ran.runs / "store")
    left = store._scratch(f"dense-{outcomes['dense'].fingerprint[:16]}") / "resume"
    left.mkdir(parents=True)
    (left / "weights").write_text("x")
    ran.run(*SMALL, "until=dense")
    assert not left.parent.exists()


def test_a_deleted_result_leaves_no_lock(ran: Place) -> None:
    store = Store(ran.runs / "store")
    for entry in list(store.entries()):
        assert store.remove(entry.path)
    assert not list((store.root / ".locks").iterdir())


# ---- MLflow's database ----


def make_database_and_die(runs: Path, at: str) -> None:
    @event.listens_for(Engine, "after_cursor_execute")
    def kill(connection: object, cursor: object, statement: str, *_: object) -> None:
        if statement.strip().startswith(at):
            os.kill(os.getpid(), signal.SIGKILL)

    connect("", "squarehead", runs)


@pytest.mark.parametrize("at", ["CREATE TABLE _alembic_tmp_latest_metrics", "CREATE TABLE runs", "CREATE TABLE tags"])
def test_a_kill_while_the_database_is_made_is_forgotten(at: str, tmp_path: Path) -> None:
    process = processes().Process(target=make_database_and_die, args=(tmp_path, at))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "mlflow.db").exists()
    made = connect("", "squarehead", tmp_path)
    assert made.client.create_run(made.experiment).info.run_id


def test_a_database_that_an_earlier_version_left_half_made(tmp_path: Path) -> None:
    tmp_path.mkdir(exist_ok=True)
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("CREATE TABLE alembic_version (version_num)")
        connection.execute("CREATE TABLE _alembic_tmp_latest_metrics (a)")
    made = connect("", "squarehead", tmp_path)  # it holds no run: made anew
    made.client.create_run(made.experiment)
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("CREATE TABLE _alembic_tmp_latest_metrics (a)")
    with pytest.raises(UserError, match="holds 1 runs; move it away") as caught:
        connect("", "squarehead", tmp_path)
    assert caught.value.option == "tracking.uri"


def test_runs_can_be_moved(tmp_path: Path, database: Path) -> None:
    (tmp_path / "before").mkdir()
    shutil.copy(database, tmp_path / "before" / "mlflow.db")
    made = connect("", "squarehead", tmp_path / "before")
    old = made.client.create_run(made.experiment).info.run_id
    (tmp_path / "before").rename(tmp_path / "after")
    moved = connect("", "squarehead", tmp_path / "after")
    new = moved.client.create_run(moved.experiment).info
    for run in (new, moved.client.get_run(old).info):
        assert Path(unquote(urlsplit(run.artifact_uri).path)).is_relative_to(tmp_path / "after")
    assert not (tmp_path / "before").exists()


@pytest.mark.parametrize("name", ["what?", "a%20b", "c#d", "e & f", "ünï", "統"])
def test_a_database_lies_in_its_folder_whatever_that_is_called(name: str, tmp_path: Path, database: Path) -> None:
    (tmp_path / name / "runs").mkdir(parents=True)
    shutil.copy(database, tmp_path / name / "runs" / "mlflow.db")
    found = connect("", "squarehead", tmp_path / name / "runs")
    found.client.create_run(found.experiment)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_database_is_made_in_a_folder_with_signs_of_addresses(tmp_path: Path) -> None:
    name = "what? a%20b c#d e & f ünï 統"
    made = connect("", "squarehead", tmp_path / name / "runs")
    made.client.create_run(made.experiment)
    assert (tmp_path / name / "runs" / "mlflow.db").exists()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_database_in_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="in memory") as caught:
        connect("sqlite://", "squarehead", tmp_path)
    assert caught.value.option == "tracking.uri"


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match="move it away"):
        database.prepare(tmp_path / "mlflow.db", tmp_path / "mlartifacts")


# ---- credentials ----


@pytest.mark.parametrize(
    "uri", [f"http://admin:{PASSWORD}@127.0.0.1:9", f"postgresql+psycopg2://u:{PASSWORD}@127.0.0.1:9/db"]
)
def test_a_password_stands_in_no_file_and_no_line(uri: str, place: Place) -> None:
    for more in (["until=data"], ["-m", "until=data", "seed=0,1"]):
        done = place.call(*more, f"tracking.uri={uri}", "quantize=none", "benchmark=none")
        assert done.returncode != 0
        assert PASSWORD not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    holding = [path for path in place.folder.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert not holding


def test_credentials_are_withdrawn_and_come_back_for_their_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(credentials.VARIABLE, raising=False)
    whole, shown = f"http://admin:{PASSWORD}@host:5000/x", "http://host:5000/x"
    line = credentials.withdraw_from(["a=b", f"tracking.uri={whole}", f"+tracking.uri='{whole}'"])
    assert line == ["a=b", f"tracking.uri={shown}", f"+tracking.uri='{shown}'"]
    assert credentials.reveal(shown) == whole
    assert credentials.reveal("http://other:5000/x") == "http://other:5000/x"
    escaped = json.dumps(f"tracking.uri=http\\://admin\\:{PASSWORD}@host\\:5000")
    assert PASSWORD not in credentials.public(escaped)
    assert credentials.public_values({"a": [whole, 1], "b": (whole,)}) == {"a": [shown, 1], "b": (shown,)}


# ---- processes ----


def test_a_living_process_lives_on_when_the_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    me = process.this_process()
    real = psutil.boot_time()
    for seconds in (1, -1, 3600, -86400):
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda seconds=seconds: real + seconds)
        assert not process.is_dead(me)
    host, pid, start = me.split(" ")
    assert process.is_dead(f"{host} {pid} 1@{start.partition('@')[2]}"), "another start is another process"
    assert not process.is_dead(f"{host} {pid} 1700000000"), "records of earlier versions go by the id"
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    assert process.is_dead(f"{host} {gone.pid} 12@x")


@pytest.fixture
def training(place: Place) -> Iterator[subprocess.Popen[str]]:
    """A run that trains for long."""
    command = place.command(*SMALL, "until=dense", "dense.training.steps=100000", "dense.training.checkpoint_every=0",
                            "dense.training.eval_every=0", "finetune.steps=0", "distill=ce")  # fmt: skip
    running = subprocess.Popen(
        command, cwd=place.folder, env=os.environ | {"PYTHONPATH": str(PROJECT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    yield running
    if running.poll() is None:
        running.kill()


def test_sigterm_saves_a_checkpoint_and_says_so(training: subprocess.Popen[str], place: Place) -> None:
    curves = (place.runs / "store" / ".scratch").glob("dense-*/resume/metrics.jsonl")
    until = time.monotonic() + 120
    while not any(path.stat().st_size for path in (place.runs / "store").glob(".scratch/dense-*/resume/metrics.jsonl")):
        assert training.poll() is None, training.communicate()
        assert time.monotonic() < until
        time.sleep(0.2)
    training.send_signal(signal.SIGTERM)
    out, error = training.communicate(timeout=60)
    assert training.returncode == 128 + signal.SIGTERM
    assert "terminated; finished stages are stored, the same command resumes" in error
    assert "Traceback" not in out + error
    kept = list((place.runs / "store").glob(".scratch/dense-*/resume/*"))
    assert [path for path in kept if path.name != "metrics.jsonl"], "no checkpoint was saved"
    del curves


# ---- errors of the system ----


@pytest.mark.parametrize(
    ("override", "option"),
    [
        ("runs={file}", "runs"),
        ("runs=/proc/none", "runs"),
        ("cache.folder={file}", "cache.folder"),
        ("hydra.run.dir={file}", "hydra.run.dir"),
        ("runs=" + "/x" * 3000, "runs"),
    ],
)
def test_places_that_cannot_be_written_are_one_line(override: str, option: str, place: Place) -> None:
    (place.folder / "file").write_text("x")
    done = place.call("until=data", "tracking=none", override.format(file=place.folder / "file"))
    assert done.returncode != 0
    assert "Traceback" not in done.stdout + done.stderr
    assert option in (done.stdout + done.stderr)


def test_a_dry_run_writes_nothing(place: Place) -> None:
    before = sorted(place.folder.rglob("*"))
    done = place.call("dry_run=true", *SMALL)
    assert done.returncode == 0, done.stderr
    written = [path for path in sorted(place.folder.rglob("*")) if path not in before]
    assert not [path for path in written if place.runs in path.parents or path == place.runs]
    assert not [path for path in written if path.name == ".hydra"]
