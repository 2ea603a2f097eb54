"""Sweeps: planned before their first job, shared stages first, killed and finished by the same line, retried."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline import __main__, report
from pipeline.record.status import Status
from pipeline.record.sweep import Sweep, sweeps
from pipeline.store.store import Store
from pipeline.sweeps import __main__ as command_line
from pipeline.sweeps import state as sweep_state
from tests import cheap
from tests.running import PROJECT, Place, call

SMALL = ["quantize=none", "benchmark=none", "tracking=none"]
TWELVE = ["-m", "sparsity=0.5,0.6,0.7,0.8", "distill=ce,kd,squarehead", *SMALL]


@dataclass(frozen=True)
class Shell:
    """Commands in this process, with stages that take no time."""

    place: Place
    patch: pytest.MonkeyPatch
    captured: pytest.CaptureFixture[str]

    def sweep(self, *overrides: str) -> tuple[int, str]:
        """Exit code and output."""
        self.patch.setattr(sys, "argv", self.place.command("-m", *SMALL, *overrides)[2:])
        code: object = 0
        try:
            __main__.main()
        except SystemExit as ended:
            code = ended.code
        told = self.captured.readouterr()
        return (code, told.out) if isinstance(code, int) else (1, told.out + str(code))

    def sweeps(self, *words: str) -> tuple[int, str]:
        code = command_line.main(["--runs", str(self.place.runs), *words])
        told = self.captured.readouterr()
        return code, told.out + told.err

    @property
    def newest(self) -> Sweep:
        return sweeps(self.place.runs)[0]


@pytest.fixture
def shell(place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("SQUAREHEAD_CACHE", os.environ.get("SQUAREHEAD_CACHE", str(place.folder / "cache")))
    for name, module in cheap.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return Shell(place, monkeypatch, capsys)


def nodes_of(sweep: Sweep) -> set[str]:
    return {node.fingerprint for job in sweep.jobs for node in job.nodes.values()}


def executed(sweep: Sweep) -> Counter[str]:
    """How often each result was made, by the sweep's own records."""
    records = [sweep.folder / "shared.json", *sweep.folder.glob("*/summary.json")]
    nodes = [node for record in records if record.exists() for node in json.loads(record.read_text()).values()]
    return Counter(node["fingerprint"] for node in nodes if node["status"] == "done")


def test_a_sweep_is_recorded_with_its_plan_and_runs_what_jobs_share_once_and_first(shell: Shell) -> None:
    code, told = shell.sweep("sparsity=0.5,0.6", "distill=ce,squarehead")
    sweep = shell.newest
    assert code == 0, told
    assert sweep.command[:4] == ["python", "-m", "pipeline", "-m"]
    assert [(job.num, job.name) for job in sweep.jobs][1] == (1, "sparsity=0.5 distill=squarehead")
    assert "sparsity=0.5" in sweep.jobs[1].overrides
    for job in sweep.jobs:
        planned = json.loads((sweep.folder / str(job.num) / "plan.json").read_text())["nodes"]
        assert {name: node["fingerprint"] for name, node in planned.items()} == {
            name: node.fingerprint for name, node in job.nodes.items()
        }
    first = json.loads((sweep.folder / "shared.json").read_text()).values()
    assert [node["node"] for node in first] == [
        "model", "data", "dense", "dense_eval", "calibrate", "prune_50", "prune_60",
    ]  # fmt: skip
    assert set(executed(sweep).values()) == {1}
    assert set(executed(sweep)) == nodes_of(sweep)
    assert "4 done" in told
    assert f"python -m pipeline.report {sweep.folder}" in told
    assert shell.sweeps("show")[0] == 0
    assert sweep.id in shell.sweeps("ls")[1]


def test_jobs_that_come_to_the_same_are_announced_in_a_line(shell: Shell) -> None:
    code, told = shell.sweep("sparsity=0,0.5", "distill=ce,kd", "seed=0,0", "dry_run=true")
    assert code == 0, told
    (line,) = (line for line in told.splitlines() if "repeat" in line)
    assert line == (
        "! 5 of 8 jobs repeat another: job 1 (sparsity=0 distill=ce) is the same as job 0 (sparsity=0 distill=ce); "
        "job 2 (sparsity=0 distill=kd) is the same as job 0 (sparsity=0 distill=ce); "
        "job 3 (sparsity=0 distill=kd) is the same as job 0 (sparsity=0 distill=ce) and 2 more"
    )
    assert "repeat" not in shell.sweep("sparsity=0.5,0.6", "dry_run=true")[1]


def test_what_jobs_share_and_fails_is_tried_once(shell: Shell) -> None:
    code, told = shell.sweep("distill=ce,squarehead", "calibrate.samples=100000")
    assert code == 1
    assert told.count("▶ calibrate") == 1
    code, shown = shell.sweeps("show")
    assert code == 1
    assert shown.count("calibrate.samples") >= 2, "each job says why it failed"
    assert sweep_state.read(shell.newest).counts == {"failed": 2}


def test_stages_run_with_the_threads_asked_for_before_the_jobs_too(shell: Shell) -> None:
    assert "threads=1" in shell.place.options
    assert shell.sweep("distill=ce,squarehead")[0] == 0
    stored = Store(shell.place.runs / "store").entries()
    assert {entry.meta["environment"]["threads"] for entry in stored} == {1}


def test_what_is_stored_needs_nothing_that_it_was_made_from(shell: Shell) -> None:
    assert shell.sweep("distill=ce,squarehead")[0] == 0
    store = Store(shell.place.runs / "store")
    for entry in [*store.entries("prune"), *store.entries("calibrate")]:
        assert store.remove(entry.path)
    code, told = shell.sweep("distill=ce,squarehead")
    assert (code, told.count("▶")) == (0, 0), told
    assert shell.place.run(*SMALL, "distill=ce")["evaluate"].status == "hit"
    code, told = shell.sweep("distill=ce,kd")
    assert code == 0, told
    assert "▶ prune_50" in told
    assert "▶ dense " not in told


def test_a_measurement_that_is_gone_is_made_again(shell: Shell) -> None:
    assert shell.place.run(*SMALL)["dense_eval"].status == "done"
    store = Store(shell.place.runs / "store")
    found = shell.place.run(*SMALL)["dense_eval"].fingerprint
    assert store.remove(store.folder("evaluate", found))
    again = {name: outcome.status for name, outcome in shell.place.run(*SMALL).items()}
    assert {name for name, status in again.items() if status == "done"} == {"dense_eval"}
    assert set(again.values()) == {"hit", "done"}


def test_square_brackets_in_options_are_no_markup(shell: Shell) -> None:
    line = ("data=qa", f"data.path={shell.place.sources.questions}", "until=dense")
    for prompt in ("{question}", "[INST] {question} [/INST]"):
        code, told = shell.sweep(*line, f'data.prompt="{prompt}"')
        assert code == 0, told
    assert "[/INST]" in told, "why data is made again"


def test_force_makes_a_shared_result_again_once(shell: Shell) -> None:
    line = ("distill=ce,squarehead", "until=dense_eval")
    assert shell.sweep(*line)[0] == 0
    code, told = shell.sweep(*line, "force=[dense]")
    assert code == 0
    assert (told.count("▶ dense "), told.count("▶ dense_eval")) == (1, 1)


def test_failed_jobs_are_retried_alone_in_their_sweep_with_their_own_options(shell: Shell, tmp_path: Path) -> None:
    away = tmp_path / "later"
    line = (f"data.path={shell.place.sources.texts},{away}", "until=dense_eval")
    code, told = shell.sweep(*line)
    sweep = shell.newest
    assert code == 1
    for command in ("watch", "retry-failed"):
        assert f"python -m pipeline.sweeps --runs {shell.place.runs} {command} {sweep.id}\n" in told
    assert [job.error.partition(":")[0] for job in sweep.jobs] == ["", "data.path"]
    assert "data.path" in shell.sweeps("show", sweep.id[:12])[1]
    away.symlink_to(shell.place.sources.texts)
    kept = (sweep.folder / "0" / "summary.json").read_bytes()
    # the stored line is run by a process of its own
    shell.patch.setattr(command_line, "PROGRAM", ("-m", "tests.cheap"))
    assert command_line.main(["--runs", str(shell.place.runs), "retry-failed", sweep.id]) == 0
    assert shell.newest.id == sweep.id, "in its own folder"
    assert shell.newest.command == sweep.command
    assert sweep_state.read(shell.newest).counts == {"done": 2}
    assert (sweep.folder / "0" / "summary.json").read_bytes() == kept
    code, told = shell.sweeps("retry-failed")
    assert (code, "nothing to retry" in told) == (0, True)


def test_a_folder_that_holds_another_sweep_is_refused(shell: Shell) -> None:
    assert shell.sweep("seed=0,1", "until=model")[0] == 0
    code, told = shell.sweep("seed=0,1,2", "until=model", f"hydra.sweep.dir={shell.newest.folder}")
    assert code == 1
    assert "hydra.sweep.dir: " in told
    assert "holds another sweep" in told


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("show", "2020"), "ID: expected one sweep"),
        (("watch", "--latest"), "--runs: no sweep"),
        (("ls",), "--runs: no folder"),
    ],
)
def test_sweeps_says_in_a_line_what_it_does_not_find(shell: Shell, words: tuple[str, ...], says: str) -> None:
    if says != "--runs: no folder":
        shell.place.runs.mkdir()
    if words == ("show", "2020"):
        assert shell.sweep("seed=0,1", "until=model")[0] == 0
    code, told = shell.sweeps(*words)
    assert code == 2
    assert says in told
    assert len(told.strip().splitlines()) == 1


def test_the_plan_of_a_sweep_of_twelve_is_one_table_in_three_seconds_of_a_processor(place: Place) -> None:
    listing = (
        "import runpy, sys; sys.argv = ['pipeline', *sys.argv[1:]]\n"
        "try: runpy.run_module('pipeline', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as ended: assert not ended.code, ended.code\n"
        "heavy = {'torch', 'mlflow', 'transformers', 'datasets', 'lm_eval', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", listing, *place.command(*TWELVE)[3:], "dry_run=true"]
    found = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert found.returncode == 0, found.stderr
    assert "96 nodes in 12 jobs, 33 distinct: 33 to run, 0 stored" in found.stdout
    assert found.stdout.count("finetune_50") == 3
    assert not place.runs.exists()
    assert after.ru_utime - before.ru_utime < 4, "it takes 2 s; 3 s are promised"


def findings(sweep: Sweep) -> dict[str, Any]:
    """What the report of a sweep says, without where and when it ran, and how long that took."""
    assert call([str(sweep.folder)], PROJECT, report.main).returncode == 0
    told = json.loads((sweep.folder / "report.json").read_text())
    jobs = [
        (job["name"], job["state"], job["options"], {name: node["fingerprint"] for name, node in job["nodes"].items()})
        for job in told["jobs"]
    ]
    models = [{key: model[key] for key in model.keys() - {"seconds", "speed"}} for model in told["models"]]
    return {key: told[key] for key in ("title", "metric", "options", "seeds")} | {"jobs": jobs, "models": models}


def test_a_sweep_killed_twice_is_finished_by_the_same_line_and_makes_nothing_twice(
    shell: Shell, tmp_path: Path
) -> None:
    """Twelve jobs. Killed first while shared stages run, then among the jobs."""
    place = shell.place
    command = [sys.executable, "-m", "tests.cheap", *place.command(*TWELVE)[3:]]
    settings: dict[str, Any] = {"cwd": place.folder, "env": os.environ | {"PYTHONPATH": str(PROJECT), "COLUMNS": "200"}}
    made: dict[Path, int] = {}
    for stage in ("prune", "finetune"):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True, **settings
        )
        deadline = time.monotonic() + 300
        while not list(place.runs.glob(f"store/{stage}/*/meta.json")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, f"no {stage}"
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        made |= {path: path.stat().st_ino for path in place.runs.glob("store/*/*/meta.json")}
    assert [sweep_state.read(sweep).status for sweep in sweeps(place.runs)] == [Status.INTERRUPTED] * 2
    assert len(made) < 20, "the kills came too late to prove anything"
    finished = place.call(*TWELVE)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    third, second, first = sweeps(place.runs)
    assert (third.continues, second.continues, first.continues) == (second.id, first.id, "")
    assert second.id in finished.stdout
    assert {path: path.stat().st_ino for path in made} == made, "a result was made again"
    assert len(list(Store(place.runs / "store").entries())) == len(nodes_of(third)) - 2, "two are in the cache"
    assert set(executed(third).values()) == {1}
    state = sweep_state.read(third)
    assert (state.status, state.counts) == ("done", {"done": 12})
    assert {node.status for node in state.nodes} == {Status.HIT}
    unbroken = Place(place.sources, tmp_path / "unbroken")
    unbroken.folder.mkdir()
    assert unbroken.call(*TWELVE).returncode == 0
    assert findings(third) == findings(sweeps(unbroken.runs)[0])
