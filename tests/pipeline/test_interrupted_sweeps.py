"""A sweep whose launcher or worker is killed, or that has a job with a bug: nothing that was finished is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import psutil
import pytest

from pipeline import __main__ as command
from pipeline import disk
from pipeline.command import compose, running
from pipeline.plan import Plan
from pipeline.record import job
from pipeline.schema import Config
from tests.running import PROJECT, Place

SMALL = ["quantize=none", "benchmark=none", "tracking=none"]
LONG = ["until=dense", "dense.training.steps=100000", "dense.training.eval_every=0",
        "dense.training.checkpoint_every=0"]  # fmt: skip
START_SECONDS, END_SECONDS = 120, 40


def wait_for(happened: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not (done := happened()) and time.monotonic() < until:
        time.sleep(0.1)
    return done


def others(session: int) -> list[int]:
    """Living processes of a session but for its leader."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if pid != session and os.getsid(pid) == session and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


@pytest.fixture
def sweep(place: Place) -> Iterator[subprocess.Popen[bytes]]:
    """Two jobs that train for long, side by side in workers of joblib; both have begun."""
    line = place.command("-m", "seed=0,1", *SMALL, *LONG, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    with (place.folder / "said").open("wb") as said:
        running = subprocess.Popen(
            line, cwd=place.folder, env=os.environ | {"PYTHONPATH": str(PROJECT)}, stdout=said, stderr=said,
            start_new_session=True,
        )  # fmt: skip
    curves = (place.runs / "store", ".scratch/dense-*/resume/metrics.jsonl")
    begun = wait_for(lambda: len(list(curves[0].glob(curves[1]))) == 2, START_SECONDS)
    try:
        assert begun, (place.folder / "said").read_text()
        yield running
    finally:
        for pid in (running.pid, *others(running.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        running.wait()


def test_workers_end_with_their_launcher_and_save_checkpoints(sweep: subprocess.Popen[bytes], place: Place) -> None:
    assert len(others(sweep.pid)) >= 2
    sweep.kill()
    sweep.wait()
    assert wait_for(lambda: not others(sweep.pid), END_SECONDS), "workers outlive their launcher"
    kept = {path.parent for path in place.runs.glob("store/.scratch/dense-*/resume/*/weights.safetensors")}
    assert len(kept) == 2


def test_a_killed_worker_ends_the_sweep_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(**_: object) -> Callable[[object], Callable[[], None]]:
        def launch() -> None:
            raise BrokenProcessPool("A worker process managed by the executor was unexpectedly terminated.")

        return lambda _: launch

    monkeypatch.setattr(compose.hydra, "main", broken)
    monkeypatch.setattr(sys, "argv", ["pipeline", "-m", "seed=0,1"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    (line,) = str(ended.value.code).splitlines()
    assert "a worker of the launcher was killed" in line
    assert "the same command resumes" in line


@pytest.mark.parametrize("error", [RecursionError("too deep"), MemoryError(), KeyError("x")], ids=repr)
def test_a_bug_in_one_job_loses_neither_its_results_nor_the_other_jobs(
    error: Exception, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = running.run_plan

    def broken(plan: Plan, config: Config, *more: Any) -> None:
        real(plan, config, *more)
        if config.seed == 0:
            raise error

    monkeypatch.setattr(running, "run_plan", broken)
    done = place.call("-m", "seed=0,1", *SMALL, "until=data")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("squarehead: job 0: ")]
    assert type(error).__name__ in told
    assert "finished stages are stored" in told
    (sweep,) = (place.runs / "sweeps").iterdir()
    for number in ("0", "1"):
        assert job.is_done(sweep / number)
    assert (sweep / "0" / "job.traceback.txt").exists()
    assert json.loads((sweep / "sweep.json").read_text())["ended"]


def test_a_record_is_the_old_one_or_the_new_one(tmp_path: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    path = disk.replace_text(tmp_path / "job.json", "old")
    monkeypatch.setattr(type(path), "write_text", _full)
    with pytest.raises(OSError, match="No space"):
        disk.replace_text(path, "new")
    assert path.read_bytes() == b"old"
    assert [there.name for there in tmp_path.iterdir()] == ["job.json"]


def _full(path: os.PathLike[str], text: str, **_: object) -> None:
    with open(path, "w") as file:
        file.write(text[:1])
    raise OSError(28, "No space left on device", str(path))
