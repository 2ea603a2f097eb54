"""The store publishes whole results or nothing, once, whoever else fills it at the time."""

import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from pipeline import disk
from pipeline.store import record
from pipeline.store.store import Slot, Store
from stages.contracts import Checkpoint, UserError
from tests.tiny_store import ONE, OTHER, fill, filler, meta, never_waiting, published_names, put, scratch_of

# ---- publishing ----


def test_a_published_result_is_found_whole_with_its_record(store):
    entry = put(store, metrics={"ppl": 12.5})
    assert entry.path == store.root / "prune" / ONE[:16]
    assert store.find("prune", ONE) == entry
    assert store.damage("prune", ONE) == ""
    assert list(store.entries()) == list(store.entries("prune")) == [entry]
    assert list(store.entries("dense")) == []
    assert entry.meta["metrics"] == entry.artifact(Checkpoint).metrics() == {"ppl": 12.5}
    assert entry.meta["files"].keys() == {"deep/model.bin", "log.txt"}
    assert entry.meta["files"]["deep/model.bin"] == {
        "bytes": 7,
        "sha256": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c",
    }
    assert record.verify(entry.path) == []
    assert not any((store.root / ".scratch").iterdir())


def test_nothing_is_found_where_nothing_was_published(store):
    assert store.find("prune", ONE) is None
    assert store.damage("prune", ONE) == ""
    assert list(store.entries()) == []


def test_published_files_are_read_only_and_can_be_hard_linked_and_deleted(store, tmp_path):
    entry = put(store)
    files = [path for path in entry.path.rglob("*") if path.is_file()]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o444] * 3
    os.link(entry.path / "deep" / "model.bin", tmp_path / "view.bin")
    assert store.remove(entry.path)
    assert not entry.path.exists()
    assert (tmp_path / "view.bin").read_bytes() == b"weights"


def test_a_failed_stage_leaves_its_checkpoints_and_nothing_else(store):
    def diverge(slot: Slot) -> None:
        (slot.out / "half.bin").write_bytes(b"half")
        (slot.resume / "step-10").write_text("10")
        raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        fill(store, diverge)
    assert store.find("prune", ONE) is None
    assert not (scratch_of(store) / "out").exists()
    with store.fill("prune", ONE, never_waiting) as slot:
        assert list(slot.out.iterdir()) == []
        assert (slot.resume / "step-10").read_text() == "10"
        slot.publish(meta())
    assert not slot.resume.exists()


def test_checkpoints_are_gone_on_from_where_they_lead_to_the_same_result(store):
    made_of = {"contents": {"model": "a"}, "code": "1"}

    def found(made_of: dict, anew: bool = False) -> list[str]:
        """The checkpoints that an attempt finds, which is then killed after the next one."""
        with store.fill("prune", ONE, never_waiting) as slot:
            slot.resume_from(made_of, anew)
            names = sorted(path.name for path in slot.resume.iterdir())
            (slot.resume / f"step_{len(names)}").touch()
        return names

    assert found(made_of) == []
    assert found(made_of) == ["step_0"]
    assert found(made_of | {"contents": {"model": "b"}}) == [], "its input came out otherwise"
    assert found(made_of) == [], "and back"
    assert found(made_of, anew=True) == [], "forced"
    assert found(made_of, anew=True) == ["step_0"], "the forced one was killed"
    assert found(made_of) == ["step_0", "step_1"]


def test_a_result_must_be_of_plain_files_and_of_its_own_slot(store):
    def link(slot: Slot) -> None:
        (slot.out / "link").symlink_to("/etc/hostname")
        slot.publish(meta())

    def forge(slot: Slot) -> None:
        (slot.out / "meta.json").write_text("{}")
        slot.publish(meta())

    with pytest.raises(ValueError, match="not a plain file"):
        fill(store, link)
    with pytest.raises(ValueError, match="reserved"):
        fill(store, forge)
    with pytest.raises(ValueError, match="another result"):
        fill(store, lambda slot: slot.publish(meta(fingerprint=OTHER)))
    assert published_names(store.root) == set()


def test_two_fingerprints_that_begin_alike_are_told_apart(store):
    twin = ONE[:16] + "f" * 48
    put(store)
    for look in (store.find, store.damage):
        with pytest.raises(UserError, match=twin) as refused:
            look("prune", twin)
        assert refused.value.option == "runs"
    with pytest.raises(UserError, match=twin):
        put(store, fingerprint=twin)
    assert store.find("prune", ONE)


def test_a_root_that_cannot_be_made_names_the_option(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as refused:
        put(Store(tmp_path / "file" / "store", "cache.folder"))
    assert refused.value.option == "cache.folder"


# ---- locks ----


def test_two_processes_make_the_same_result_once(tmp_path):
    first = filler(tmp_path / "store", behaviour="until_waiting")
    assert first.stdout
    assert [first.stdout.readline() for _ in range(2)] == ["started\n", "working\n"]
    second = filler(tmp_path / "store")
    said, _ = second.communicate(timeout=60)
    assert first.wait(timeout=60) == second.returncode == 0
    first.stdout.close()
    lines = said.splitlines()
    assert lines[0] == "started"
    assert lines[1].startswith(f"waiting for pid {first.pid} on host ")
    assert lines[2:] == [f"hit {tmp_path / 'store' / 'prune' / ONE[:16]}"]


def test_who_waited_to_replace_a_result_does_not_take_the_old_one_for_new(tmp_path):
    old = put(Store(tmp_path / "store")).meta["files"]
    first = filler(tmp_path / "store", behaviour="give_up")
    assert first.stdout
    assert [first.stdout.readline() for _ in range(2)] == ["started\n", "working\n"]
    second = filler(tmp_path / "store", behaviour="replace")
    said, _ = second.communicate(timeout=60)
    assert (first.wait(timeout=60), second.returncode) == (1, 0)
    first.stdout.close()
    assert said.splitlines()[2:] == ["working"]
    new = Store(tmp_path / "store").find("prune", ONE)
    assert new is not None
    assert new.meta["files"] != old


def test_different_results_are_made_side_by_side(tmp_path):
    both = [filler(tmp_path / "store", fingerprint, "side_by_side") for fingerprint in (ONE, OTHER)]
    for process in both:
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert said.split() == ["started", "working"]


def test_a_result_that_appeared_since_the_plan_is_not_made_again_unless_forced(store):
    entry = put(store)
    with store.fill("prune", ONE, never_waiting) as slot:
        assert slot.entry == entry
    with store.fill("prune", ONE, never_waiting, replace=True) as slot:
        assert slot.entry is None
    assert store.find("prune", ONE) == entry


def test_what_a_process_works_on_is_not_removed(store):
    put(store)
    with store.fill("prune", ONE, never_waiting, replace=True) as slot:
        assert not store.remove(store.root / "prune" / ONE[:16])
        assert not store.remove(slot.out.parent)
        assert list(store.scratch()) == []
        slot.publish(meta())


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "rename"])
def test_a_result_gives_way_to_another_whole_one(store, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(disk, "_exchange", lambda one, other: False)
    put(store, content=b"old")
    entry = put(store, content=b"newer")
    assert (entry.path / "deep" / "model.bin").read_bytes() == b"newer"
    assert record.verify(entry.path) == []
    assert not any((store.root / ".scratch").iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges two names in one step")
def test_a_reader_always_finds_a_whole_result_while_it_is_replaced(store):
    put(store, content=b"x")
    misses, looks, done = [], 0, threading.Event()

    def read() -> None:
        nonlocal looks
        while not done.is_set():
            looks += 1
            if store.find("prune", ONE) is None:
                misses.append(looks)

    reader = threading.Thread(target=read)
    reader.start()
    for size in range(2, 32):
        put(store, content=b"x" * size)
    done.set()
    reader.join()
    assert looks > 20
    assert misses == []


def test_a_result_replaced_twice_while_it_is_looked_at_is_whole(store, monkeypatch):
    """A file system gives the number of a deleted folder's inode to the next one: it must not pass for the old one."""
    put(store, content=b"x")
    read, replaced = record.read, []

    def read_and_replace(folder: Path) -> dict:
        old = read(folder)
        if not replaced:
            replaced.append(folder)
            put(store, content=b"xx")
            put(store, content=b"xxx")
        return old

    monkeypatch.setattr(record, "read", read_and_replace)
    assert store.find("prune", ONE) is not None
    assert replaced
