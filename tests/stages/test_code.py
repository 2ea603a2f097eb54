"""Programs of models run in a child that cannot harm the machine."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import psutil
import pytest

from stages.evaluate.code import running

FORKS = "import os\nwhile True:\n    os.fork()"
RAW_FORKS = """
import sys
posix = sys.modules["posix"]
children = 0
try:
    for _ in range(50):
        if posix.fork() == 0:
            while True: pass
        children += 1
except OSError:
    pass
assert children, "refused"
"""


def test_a_program_that_comes_to_its_end_passes_and_others_do_not() -> None:
    assert running.run("import heapq, re, collections, math\nassert math.sqrt(4) == 2", 5).passed
    assert not running.run("assert 1 == 2", 5).passed
    assert not running.run("def broken(:", 5).passed


@pytest.mark.parametrize("ending", ["import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit"])
def test_leaving_early_is_no_pass(ending: str) -> None:
    assert not running.run(f"{ending}\nassert False", 5).passed


@pytest.mark.parametrize("program", ["while True: pass", "while True: print('x' * 1000)"])
def test_endless_programs_are_ended(program: str) -> None:
    start = time.monotonic()
    assert not running.run(program, 1).passed
    assert time.monotonic() - start < 5


def test_a_program_that_sleeps_is_ended_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_GRACE", 0)
    verdict = running.run("import time; time.sleep(60)", 2)
    assert (verdict.passed, verdict.timed_out) == (False, True)


@pytest.mark.parametrize("program", [FORKS, RAW_FORKS])
def test_no_process_is_left_of_a_program_that_forks(program: str) -> None:
    before = {process.pid for process in psutil.process_iter()}
    assert not running.run(program, 1).passed
    left = [p for p in psutil.process_iter(["cmdline"]) if p.pid not in before and "child.py" in str(p.info["cmdline"])]
    assert not [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    "program",
    [
        "import socket; socket.create_connection(('127.0.0.1', {port}), 1)",
        "open({outside!r}, 'w')",
        "import os; os.remove({outside!r})",
        "import shutil; shutil.rmtree({folder!r})",
        "import subprocess; subprocess.run(['true'])",
        "import ctypes; ctypes.CDLL(None)",
        "x = bytearray(4 << 30)",
        "for n in range(10000): open(str(n), 'wb').write(b'x' * (1 << 20))",
    ],
)
def test_the_machine_is_out_of_reach(program: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("kept")
    free = os.statvfs(tmp_path).f_bavail
    assert not running.run(program.format(port=9, outside=str(outside), folder=str(tmp_path)), 5).passed
    assert outside.read_text() == "kept"
    assert free - os.statvfs(tmp_path).f_bavail < 1 << 20


def test_an_isolated_program_sees_no_files_of_the_machine() -> None:
    found = running.run("import os\nassert os.listdir('/') == ['python'], os.listdir('/')", 5)
    if found.isolation == "limited":
        pytest.skip("this system allows no namespaces")
    assert found.passed


def test_programs_run_side_by_side_and_keep_their_order() -> None:
    programs = ["pass", "assert False", "pass", "1 / 0"]
    assert [verdict.passed for verdict in running.run_all(programs, 5, 2)] == [True, False, True, False]
    assert threading.active_count() < 20
