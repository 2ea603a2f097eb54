"""Several users on one store: files and folders have the rights that the umask gives; one line says what is amiss."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import disk
from pipeline.store.store import Store
from stages.contracts import UserError
from tests.running import Place

GROUP, ALICE, BOB = 60001, 60002, 60003
META = {"stage": "dense", "fingerprint": "a" * 64, "metrics": {}, "inputs": {}, "config": {}}
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be two users")


def test_all_that_a_sweep_leaves_has_the_rights_of_the_umask(place: Place) -> None:
    folders, files = 0o775, 0o664
    line = ("-m", "seed=0,1", "until=calibrate", "dense.training.steps=1", "distill=ce")
    code, said = place.fork(*line, umask=0o002).end()
    assert code == 0, said
    there = [path for root in (place.runs, place.folder / "cache") for path in (root, *root.rglob("*"))]
    modes = {path: path.stat().st_mode & 0o777 for path in there}
    assert {modes[path] for path in there if path.is_dir()} == {folders}
    changed = {path.relative_to(place.folder) for path in there if path.is_file() and modes[path] != files}
    published = {
        path.relative_to(place.folder) for path in there if path.is_file() and modes[path] == disk.READ_ONLY
    }  # results, and MLflow's second names of them
    assert changed == published
    assert {path.name for path in there if modes[path] == files} >= {"mlflow.db", "mlflow.lock", "sweep.json"}
    assert any(path.suffix == ".lock" and path.parent.name == ".locks" for path in there if modes[path] == files)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder of the group, whose files inherit that; where every user gets to."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    os.chown(folder, ALICE, GROUP)
    folder.chmod(0o2775)
    yield folder
    shutil.rmtree(folder)


def told_by(user: int, umask: int, action: Callable[[], object]) -> str:
    """What it returned, or the error it raised, in a process of this user."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.umask(umask)
        os.setgroups([])
        os.setgid(GROUP)
        os.setuid(user)
        try:
            told = str(action())
        except BaseException as error:
            told = f"{type(error).__name__} {error}"
        os.write(writing, told.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        told = file.read()
    os.waitpid(pid, 0)
    return told


def publish(store: Store, text: str) -> str:
    with store.fill("dense", "a" * 64, print, replace=True) as slot:
        (slot.out / "made").write_text(text)
        return (slot.publish(META).path / "made").read_text()


@needs_root
def test_two_users_of_a_group_make_replace_and_delete_each_others_results(shared: Path) -> None:
    store = Store(shared / "store")
    assert told_by(ALICE, 0o002, lambda: publish(store, "alice")) == "alice"
    assert told_by(BOB, 0o002, lambda: publish(store, "bob")) == "bob"
    assert told_by(ALICE, 0o002, lambda: store.remove(store.folder("dense", "a" * 64))) == "True"
    assert not list(store.entries())


@needs_root
def test_a_store_that_another_user_closed_is_refused_in_a_line(shared: Path) -> None:
    store = Store(shared / "store")
    assert told_by(ALICE, 0o022, lambda: publish(store, "alice")) == "alice"
    told = told_by(BOB, 0o022, lambda: publish(store, "bob"))
    assert told.startswith(f"{UserError.__name__} runs: cannot write")
    assert "umask 002" in told
    assert "\n" not in told
