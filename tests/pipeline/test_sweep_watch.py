"""Watching a sweep: what its jobs leave on disk tells how far each is, from any terminal, and when it will be done."""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline import progress
from pipeline.log import StageLog
from pipeline.process import this_process
from pipeline.progress import ProgressFile
from pipeline.record.outcome import Outcome, write_outcomes
from pipeline.record.status import Status
from pipeline.record.sweep import Sweep, SweepJob, SweepNode, sweeps
from pipeline.store import garbage
from pipeline.store.store import Slot, Store
from pipeline.sweeps import __main__ as command_line
from pipeline.sweeps import state as sweep_state
from pipeline.sweeps.watch import screen, wait_for_sweep, watch

DEAD = this_process().replace(f" {os.getpid()} ", " 1 ")


def fingerprint(name: str) -> str:
    return f"{sum(map(ord, name)):064x}"[::-1]


def make_sweep(runs: Path, process: str = "", jobs: int = 3, parallel: int = 1) -> Sweep:
    """Jobs that share `dense` and have a `finetune` each."""
    planned = [
        SweepJob(
            num, f"seed={num}", [f"seed={num}"], {"seed": str(num)},
            {
                "dense": SweepNode("dense", fingerprint("dense")),
                "finetune_50": SweepNode("finetune", fingerprint(f"finetune {num}")),
            },
        )
        for num in range(jobs)
    ]  # fmt: skip
    started = datetime.now(UTC).isoformat(timespec="seconds")
    sweep = Sweep(
        runs / "sweeps" / "20260101-1", ["python", "-m", "pipeline", "-m", "seed=0,1,2"], str(runs), started,
        process or this_process(), str(runs / "cache"), parallel, "", planned,
    )  # fmt: skip
    sweep.write()
    return sweep


def publish(slot: Slot, stage: str, key: str, seconds: float) -> None:
    slot.publish(
        {"stage": stage, "version": "1", "fingerprint": key, "config": {}, "inputs": {}, "facts": {}}
        | {"metrics": {}, "seconds": seconds, "created": "", "environment": {}, "code": ""}
    )


def store(runs: Path, stage: str, name: str, seconds: float) -> None:
    with Store(runs / "store").fill(stage, fingerprint(name), lambda who: None) as slot:
        publish(slot, stage, fingerprint(name), seconds)


def end_job(sweep: Sweep, num: int, status: str = "done", error: str = "") -> None:
    nodes: dict[str, Any] = {
        "dense": {"stage": "dense", "status": "hit", "seconds": 5.0, "metrics": {}, "error": ""},
        "evaluate": {
            "stage": "evaluate",
            "status": status,
            "seconds": 1.0,
            "error": error,
            "metrics": {"perplexity": 12.5, "perplexity_recovery": 80.0} if status == "done" else {},
        },
    }
    for name, node in nodes.items():
        node["fingerprint"] = fingerprint(name)
    folder = sweep.folder / str(num)
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(nodes))


def begin_job(sweep: Sweep, num: int, process: str) -> None:
    (sweep.folder / str(num)).mkdir()
    (sweep.folder / str(num) / "job.json").write_text(json.dumps({"process": process}))


def shown(state: sweep_state.SweepState) -> str:
    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(screen(state))
    return console.export_text()


def test_every_job_has_the_status_that_its_folder_tells(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, DEAD, jobs=6)
    end_job(sweep, 0)
    end_job(sweep, 1, "failed", "lr: too large")
    end_job(sweep, 2, "not run")
    begin_job(sweep, 3, DEAD)
    begin_job(sweep, 4, this_process())
    state = sweep_state.read(sweep)
    assert [job.status for job in state.jobs] == [
        Status.DONE, Status.FAILED, Status.INTERRUPTED, Status.INTERRUPTED, Status.RUNNING, Status.NOT_RUN,
    ]  # fmt: skip
    assert state.jobs[1].reason == "evaluate: lr: too large"
    found = state.jobs[0].headline
    assert found.quality is not None
    assert (found.quality.name, found.recovery) == ("perplexity", 80.0)
    assert state.status == Status.RUNNING
    (sweep.folder / "4" / "job.json").write_text(json.dumps({"process": DEAD}))
    assert sweep_state.read(sweep).status == Status.INTERRUPTED


def test_a_record_that_was_changed_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = make_sweep(tmp_path, DEAD, jobs=1)
    end_job(sweep, 0)
    write_outcomes({"ab" * 32: Outcome("data", "data", "ab" * 32, Status.DONE, 12.5)}, sweep.folder / "shared.json")
    asked = ["--runs", str(tmp_path), "show"]
    assert (command_line.main(asked), "cannot be read" in capsys.readouterr().out) == (0, False)
    (sweep.folder / "shared.json").write_text((sweep.folder / "shared.json").read_text().replace("12.5", "13.5"))
    assert command_line.main(asked) == 1
    assert "shared.json cannot be read, or was changed" in capsys.readouterr().out.replace("\n", "")


def test_a_summary_that_cannot_be_read_is_no_end(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, DEAD, jobs=2)
    for num in (0, 1):
        end_job(sweep, num)
    (sweep.folder / "1" / "summary.json").write_text('{"dense": {"sta')
    begin = json.dumps({"process": DEAD})
    (sweep.folder / "1" / "job.json").write_text(begin)
    assert [job.status for job in sweep_state.read(sweep).jobs] == [Status.DONE, Status.INTERRUPTED]


def test_jobs_of_a_living_sweep_wait_and_those_of_a_killed_one_never_run(tmp_path: Path) -> None:
    assert {job.status for job in sweep_state.read(make_sweep(tmp_path)).jobs} == {Status.TO_RUN}
    assert {job.status for job in sweep_state.read(make_sweep(tmp_path, DEAD)).jobs} == {Status.NOT_RUN}


def test_a_job_that_cannot_be_planned_has_failed(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, DEAD, jobs=1)
    sweep.jobs[0].__dict__["error"] = "sparsity: too much"
    sweep.write()
    (job,) = sweep_state.read(Sweep.read(sweep.folder)).jobs
    assert (job.status, job.reason) == (Status.FAILED, "sparsity: too much")


def test_a_running_stage_is_seen_with_its_step_rate_and_time_left_and_a_killed_one_as_such(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, parallel=2)
    store(tmp_path, "dense", "dense", 60.0)
    store(tmp_path, "finetune", "finetune 0", 100.0)
    scratch = Store(tmp_path / "store").progress("finetune", fingerprint("finetune 1"))
    scratch.parent.mkdir(parents=True)
    now = time.time()
    written = progress.Progress(this_process(), now - 30, now, "finetune", 30, 100, "step", 1.0, {"loss": 2.5})
    scratch.write_text(json.dumps(written.__dict__))
    state = sweep_state.read(sweep)
    assert {node.name: node.status for node in state.nodes if node.users == 3} == {"dense": Status.HIT}
    assert sorted(node.status for node in state.nodes) == sorted(
        [Status.RUNNING, Status.HIT, Status.HIT, Status.TO_RUN]
    )
    seconds, unknown = state.seconds_left()
    assert (seconds, unknown) == (pytest.approx((70 + 100) / 2, abs=1), 0)
    text = shown(state)
    assert "30/100" in text
    assert "1 step/s" in text
    assert "loss 2.5" in text
    assert "about 85 s left" in text
    scratch.write_text(json.dumps(written.__dict__ | {"process": DEAD}))
    assert "interrupted" in shown(sweep_state.read(sweep))


def test_what_kinds_of_stages_take_is_not_guessed(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    store(tmp_path, "dense", "dense", 60.0)
    assert sweep_state.read(sweep).seconds_left() == (0.0, 3)
    assert "3 stages of kinds not measured yet" in shown(sweep_state.read(sweep))


def test_progress_is_written_while_a_stage_works_and_is_no_part_of_its_result(tmp_path: Path) -> None:
    results, key = Store(tmp_path / "store"), fingerprint("dense")
    at = results.progress("dense", key)
    with results.fill("dense", key, lambda who: None) as slot:
        with StageLog(
            "dense", slot.out, slot.resume, Console(quiet=True), False, lambda *point: None, slot.progress, "cpu"
        ) as log:
            begun = progress.read(at)
            assert begun is not None
            assert (begun.what, begun.alive) == ("", True)
            with log.bar("train", total=50, unit="step") as bar:
                for _ in range(50):
                    bar.advance(loss=1.5)
                    time.sleep(0.001)
            ended = progress.read(at)
        assert ended is not None
        assert (ended.what, ended.done, ended.total, ended.unit, ended.shown) == (
            "train",
            50,
            50,
            "step",
            {"loss": 1.5},
        )
        assert 50 < ended.rate < 1000
        publish(slot, "dense", key, 1.0)
        assert slot.entry is not None
    assert progress.read(at) is None
    assert {path.name for path in slot.entry.path.iterdir()} == {"meta.json"}


def test_progress_goes_with_a_failed_stage_and_checkpoints_stay(tmp_path: Path) -> None:
    results, key = Store(tmp_path / "store"), fingerprint("dense")
    with suppress(RuntimeError), results.fill("dense", key, lambda who: None) as slot:
        ProgressFile(slot.progress)
        (slot.resume / "checkpoint").write_text("")
        raise RuntimeError
    assert progress.read(results.progress("dense", key)) is None
    assert (slot.resume / "checkpoint").exists()


def test_progress_is_written_at_most_once_a_second(tmp_path: Path) -> None:
    file = ProgressFile(tmp_path / "progress.json")
    file.begin("train", 10**6, "step")
    file.update("train", 1, 10**6, "step", {})
    for step in range(2, 3000):
        file.update("train", step, 10**6, "step", {})
    found = progress.read(tmp_path / "progress.json")
    assert found is not None
    assert found.done == 1, "2998 steps took less than a second"


def test_watching_ends_with_the_sweep(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, DEAD, jobs=1)
    end_job(sweep, 0)
    state = watch(sweep, Console(quiet=True), until=lambda state: not state.alive)
    assert state.status == Status.DONE


def test_watching_waits_for_the_next_sweep_if_none_runs(tmp_path: Path) -> None:
    make_sweep(tmp_path, DEAD, jobs=1)
    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    newer = tmp_path / "sweeps" / "20260101-2"

    def begin() -> None:
        time.sleep(0.5)
        newer.mkdir()
        old = (tmp_path / "sweeps" / "20260101-1" / "sweep.json").read_text()
        (newer / "sweep.json").write_text(old)

    thread = threading.Thread(target=begin)
    thread.start()
    assert wait_for_sweep(tmp_path, console).folder == newer
    thread.join()
    said = console.export_text()
    assert "waiting for a sweep" in said
    assert "20260101-1, is interrupted (--latest shows it)" in said


def test_watching_takes_the_sweep_that_runs(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    assert wait_for_sweep(tmp_path, Console(quiet=True)) == sweep


def test_the_record_of_a_sweep_reads_back_as_it_was_written(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    assert sweeps(tmp_path) == [sweep]
    record = json.loads((sweep.folder / "sweep.json").read_text())
    assert (
        record["jobs"][0].items()
        >= {
            "num": 0,
            "name": "seed=0",
            "overrides": ["seed=0"],
            "nodes": {name: asdict(node) for name, node in sweep.jobs[0].nodes.items()},
        }.items()
    )
    assert record["command"] == sweep.command


def test_what_a_sweep_has_planned_is_no_garbage_before_its_jobs_begin(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, DEAD, jobs=1)
    results = Store(tmp_path / "store")
    for name in ("dense", "another"):
        with suppress(RuntimeError), results.fill("dense", fingerprint(name), lambda who: None) as slot:
            (slot.resume / "checkpoint").write_text("")
            raise RuntimeError
    assert garbage.planned(tmp_path) == {node.fingerprint for node in sweep.jobs[0].nodes.values()}
    found = {item.path.name for item in garbage.collect(results, garbage.planned(tmp_path))}
    assert found == {f"dense-{fingerprint('another')[:16]}"}


def test_a_record_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    (tmp_path / "sweeps" / "broken").mkdir()
    (tmp_path / "sweeps" / "broken" / "sweep.json").write_text("{")
    assert sweeps(tmp_path) == [sweep]
    assert command_line.main(["--runs", str(tmp_path), "ls"]) == 1
