"""What the store lists, what it deletes on request, and what it keeps."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import disk
from pipeline.store.__main__ import main
from pipeline.store.store import Entry, Store
from tests.tiny_store import ONE, OTHER, never_waiting, put


def plan(runs: Path, where: str, *entries: Entry) -> None:
    path = runs / where / "plan.json"
    path.parent.mkdir(parents=True)
    nodes = {f"n{i}": {"stage": entry.stage, "fingerprint": entry.fingerprint} for i, entry in enumerate(entries)}
    path.write_text(json.dumps({"nodes": nodes}))


def age(entry: Entry, days: float) -> Entry:
    then = time.time() - days * 86400
    os.utime(entry.path / "meta.json", (then, then))
    return entry


def stages_left(store: Store) -> set[str]:
    return {entry.stage for entry in store.entries()}


@pytest.fixture
def runs(store) -> Path:
    """model <- dense <- prune <- finetune (planned by a job); quantize (by a sweep); evaluate; benchmark (young)."""
    made: dict[str, Entry] = {}
    chain = [("model", None), ("dense", "model"), ("prune", "dense"), ("finetune", "prune"), ("quantize", None)]
    for number, (stage, source) in enumerate([*chain, ("evaluate", "finetune"), ("benchmark", None)]):
        inputs = {"model": made[source].fingerprint} if source else {}
        made[stage] = age(put(store, stage, f"{number:x}" * 64, inputs=inputs), 0 if stage == "benchmark" else 9)
    folder = store.root.parent
    plan(folder, "jobs/a", made["finetune"])
    plan(folder, "sweeps/b/0", made["quantize"])
    return folder


def test_gc_shows_and_deletes_only_on_request(store, runs, capsys):
    assert main(["--runs", str(runs), "gc"]) == 0
    assert len(list(store.entries())) == 7
    said = capsys.readouterr().out
    assert f"evaluate/{'5' * 16}" in said
    assert "nothing was deleted" in said
    assert main(["--runs", str(runs), "gc", "--yes"]) == 0
    assert stages_left(store) == {"model", "dense", "prune", "finetune", "quantize", "benchmark"}


def test_gc_keeps_the_young_as_long_as_asked(store, runs):
    assert main(["--runs", str(runs), "gc", "--yes", "--keep-days", "10"]) == 0
    assert len(list(store.entries())) == 7
    assert main(["--runs", str(runs), "gc", "--yes", "--keep-days", "0"]) == 0
    assert stages_left(store) == {"model", "dense", "prune", "finetune", "quantize"}


def test_gc_gives_up_inputs_of_kept_results_only_on_request(store, runs):
    assert main(["--runs", str(runs), "gc", "--yes", "--inputs", "--keep-days", "0"]) == 0
    assert stages_left(store) == {"finetune", "quantize"}


def test_gc_refuses_to_guess_what_an_unreadable_plan_needs(store, runs, capsys):
    (runs / "jobs/a/plan.json").write_text('{"nodes": {"n0": {"fing')
    assert main(["--runs", str(runs), "gc", "--yes"]) == 2
    assert "plan.json" in capsys.readouterr().err
    assert len(list(store.entries())) == 7


def test_gc_frees_what_kills_left_but_not_work_in_progress_or_checkpoints_of_a_plan(store, runs):
    planned = Entry("finetune", "a" * 64, store.root)
    plan(runs, "jobs/killed", planned)
    for fingerprint in ("a" * 64, "b" * 64):
        scratch = store.root / ".scratch" / f"finetune-{fingerprint[:16]}"
        for name in ("out", "resume"):
            (scratch / name).mkdir(parents=True)
            (scratch / name / "state").write_text("10")
    with store.fill("finetune", "c" * 64, never_waiting) as slot:
        (slot.out / "state").write_text("10")
        assert main(["--runs", str(runs), "gc", "--yes"]) == 0
        assert (slot.out / "state").exists()
    left = sorted(
        path.relative_to(store.root / ".scratch").as_posix() for path in (store.root / ".scratch").glob("*/*")
    )
    assert left == [f"finetune-{'a' * 16}/resume"]


def test_gc_counts_hard_linked_files_once_and_what_stays_linked_not_at_all(store, tmp_path):
    one, other = put(store, content=b"x" * 1000), put(store, fingerprint=OTHER)
    os.link(one.path / "deep" / "model.bin", other.path / "again.bin")
    both = [one.path, other.path]
    logs = 2 * len("done") + sum((path / "meta.json").stat().st_size for path in both)
    assert disk.used_bytes(both) == disk.freed_bytes(both) == 1000 + len("weights") + logs
    assert disk.freed_bytes([one.path]) < 1000
    os.link(one.path / "deep" / "model.bin", tmp_path / "view.bin")
    assert disk.freed_bytes(both) == len("weights") + logs


def test_gc_of_the_cache_keeps_what_results_of_the_runs_were_made_from(store, runs, tmp_path):
    cache = Store(tmp_path / "cache" / "store")
    for fingerprint in ("d" * 64, "e" * 64):
        age(put(cache, "data", fingerprint), 90)
    put(store, "dense", "f" * 64, inputs={"data": "d" * 64})
    assert main(["--runs", str(runs), "--cache", str(tmp_path / "cache"), "gc", "--yes"]) == 0
    assert [entry.fingerprint for entry in cache.entries()] == ["d" * 64]
    assert len(list(store.entries())) == 8


def test_ls_says_where_results_differ_and_who_uses_them(store, capsys):
    dense = put(store, "dense", "d" * 64, config={"training": {"lr": 1e-4, "steps": 5}})
    put(store, "prune", ONE, config={"sparsity": 0.5, "prune": {"method": "wanda"}}, inputs={"model": "d" * 64})
    put(store, "prune", OTHER, config={"sparsity": 0.7, "prune": {"method": "wanda"}}, inputs={"model": "d" * 64})
    plan(store.root.parent, "jobs/a", dense)
    assert main(["--runs", str(store.root.parent), "ls"]) == 0
    said = capsys.readouterr().out
    rows = {
        line.split()[0] + line.split()[1][0]: line.split()
        for line in said.splitlines()
        if "dd" in line or "prune" in line
    }
    assert rows["densed"][-2:] == ["1", "2"]  # in jobs, input of
    assert rows["prune1"][-3:] == ["0", "0", "sparsity=0.5"]
    assert rows["prune2"][-1] == "sparsity=0.7"
    assert "3 results" in said


def test_the_command_line_is_fast_to_start_and_says_what_is_wrong(tmp_path):
    def call(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-X", "importtime", "-m", "pipeline.store", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    listed = call("--runs", str(tmp_path), "ls")
    assert listed.returncode == 0
    assert "0 results" in listed.stdout
    imported = {line.rpartition("|")[2].strip() for line in listed.stderr.splitlines()}
    assert "pipeline.store.garbage" in imported
    assert not imported & {"torch", "mlflow", "hydra", "pydantic", "numpy"}
    missing = call("--runs", str(tmp_path / "nowhere"), "gc")
    assert missing.returncode == 2
    assert missing.stderr.splitlines()[-1].startswith("--runs: no folder")
