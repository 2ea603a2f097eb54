"""A store after kills, damage and a full disk: whole results or none, and each fault is seen."""

import errno
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError

from pipeline.store import record
from pipeline.store.__main__ import main
from pipeline.store.store import Slot, Store
from stages.contracts import UserError
from tests.tiny_store import (
    ONE,
    OTHER,
    fill,
    filler,
    never_waiting,
    overwrite,
    published_names,
    put,
    scratch_of,
    started_filler,
)

# ---- kills ----


def test_killed_at_random_points_it_never_publishes_a_half_and_goes_on_from_its_checkpoints(tmp_path):
    store, chance = Store(tmp_path / "store"), random.Random(0)
    process, started = started_filler(store.root, OTHER)
    process.communicate()
    assert process.returncode == 0
    whole = time.monotonic() - started
    kept = scratch_of(store) / "resume" / "checkpoint"
    kills = num_checkpoints = 0
    for _ in range(40):
        process, _ = started_filler(store.root)
        time.sleep(chance.uniform(0, whole))
        process.kill()
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            kills += 1
        else:
            whole *= 0.8  # the machine was busier when it was measured
        if entry := store.find("prune", ONE):
            assert record.verify(entry.path) == []
            store.remove(entry.path)
            num_checkpoints = 0
        assert published_names(store.root) == {f"prune/{OTHER[:16]}"}
        assert kept.exists() or num_checkpoints == 0
        num_checkpoints += kept.exists()
        if kills == 8:
            break
    assert kills == 8
    assert filler(store.root).wait() == 0
    entry = store.find("prune", ONE)
    assert entry
    assert record.verify(entry.path) == []
    assert not any((store.root / ".scratch").iterdir())


@pytest.mark.parametrize("existing", [False, True], ids=["new", "replaced"])
def test_killed_before_any_step_on_the_disk_there_is_the_old_result_the_new_or_none(tmp_path, existing):
    """Exhaustive: the n-th access to the store kills the process, for every n until it survives."""
    survived = False
    kills = 0
    while not survived:
        store = Store(tmp_path / str(kills) / "store")
        if existing:
            put(store, content=b"old")
        process = os.fork()
        if process == 0:
            _die_at_access(kills, store.root)
            put(store, content=b"new")
            os._exit(0)
        survived = os.waitpid(process, 0)[1] == 0
        entry = store.find("prune", ONE)
        if entry:
            assert record.verify(entry.path) == []
        assert store.damage("prune", ONE) == ""
        assert entry or not (existing or survived)
        put(store, content=b"next")
        assert published_names(store.root) == {f"prune/{ONE[:16]}"}
        assert not any((store.root / ".scratch").iterdir())
        kills += not survived
    assert kills > 20


def _die_at_access(number: int, root: Path) -> None:
    left = number
    changes = {"os.remove", "os.rmdir", "os.rename", "os.mkdir", "os.chmod", "ctypes.dlsym"}

    def hook(event: str, arguments: tuple) -> None:
        nonlocal left
        ours = any(isinstance(value, str | bytes | Path) and str(root) in os.fsdecode(value) for value in arguments)
        if ours or event in changes:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(hook)


# ---- damage ----


def test_a_truncated_or_missing_file_makes_a_result_a_miss_with_its_reason(store):
    entry = put(store)
    overwrite(entry.path / "deep" / "model.bin", b"weigh")
    assert store.find("prune", ONE) is None
    assert store.damage("prune", ONE) == "deep/model.bin has 5 bytes, not 7"
    (entry.path / "deep" / "model.bin").unlink()
    assert store.damage("prune", ONE) == "deep/model.bin is missing"
    assert put(store) == store.find("prune", ONE)


@pytest.mark.parametrize(
    "change", [lambda text: text[:-40], lambda text: text.replace('"version": "1"', '"version": "2"')]
)
def test_a_changed_record_makes_a_result_a_miss(store, change):
    entry = put(store)
    text = (entry.path / "meta.json").read_text()
    assert change(text) != text
    overwrite(entry.path / "meta.json", change(text).encode())
    assert store.find("prune", ONE) is None
    assert store.damage("prune", ONE) == "meta.json is missing or corrupted"
    assert list(store.entries()) == []
    with store.fill("prune", ONE, never_waiting) as slot:
        assert slot.entry is None


def test_a_result_in_the_folder_of_another_is_damage(store):
    entry = put(store)
    entry.path.rename(entry.path.with_name(OTHER[:16]))
    assert store.find("prune", OTHER) is None
    assert store.damage("prune", OTHER)


def test_verify_names_every_damaged_file_and_removes_on_request(store, capsys):
    runs = ["--runs", str(store.root.parent)]
    good, bad, worse = put(store, "dense"), put(store, fingerprint=OTHER), put(store, "quantize")
    assert main([*runs, "verify"]) == 0
    assert "3 results" in capsys.readouterr().out
    overwrite(bad.path / "deep" / "model.bin", b"wEights")
    overwrite(bad.path / "log.txt", b"d0ne")
    (worse.path / "masks.safetensors").write_bytes(b"not mine")
    assert store.find("prune", OTHER)  # sizes are right: only verify can see it
    assert main([*runs, "verify"]) == 1
    said = capsys.readouterr().out
    assert f"prune/{OTHER[:16]}: deep/model.bin is corrupted" in said
    assert f"prune/{OTHER[:16]}: log.txt is corrupted" in said
    assert f"quantize/{ONE[:16]}: masks.safetensors does not belong to this result" in said
    assert "dense/" not in said
    assert main([*runs, "verify", "--remove"]) == 1
    assert list(store.entries()) == [good]
    assert main([*runs, "verify"]) == 0


# ---- disk full ----


def test_a_stage_that_fills_the_disk_stops_with_the_option_to_change(store):
    def write(slot: Slot) -> None:
        (slot.resume / "step-10").write_text("10")
        (slot.out / "weights").write_bytes(b"half")
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"weights")

    with pytest.raises(UserError, match=r"full \(.* free") as stopped:
        fill(store, write)
    assert stopped.value.option == "runs"
    assert published_names(store.root) == set()
    assert not (scratch_of(store) / "out").exists()
    assert (scratch_of(store) / "resume" / "step-10").exists()


def test_a_full_disk_is_recognised_in_the_errors_of_libraries_and_nothing_else_is(store):
    def serialize(slot: Slot) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def reraise(slot: Slot) -> None:
        raise RuntimeError("file write failed") from OSError(errno.EDQUOT, "quota")

    def forbid(slot: Slot) -> None:
        raise PermissionError(errno.EACCES, "denied")

    for stop in (serialize, reraise):
        with pytest.raises(UserError, match="full"):
            fill(store, stop)
    with pytest.raises(PermissionError):
        fill(store, forbid)


@pytest.mark.parametrize("synced", range(4))
def test_a_disk_that_is_full_when_publishing_leaves_nothing_published(store, monkeypatch, synced):
    put(store, "dense")
    left = synced

    def fsync(descriptor: int) -> None:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        left -= 1

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError, match="full"):
        put(store)
    assert published_names(store.root) == {f"dense/{ONE[:16]}"}
    monkeypatch.undo()
    put(store)
    assert store.find("prune", ONE)
