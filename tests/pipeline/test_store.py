"""The store publishes whole results or nothing, once, and can prove that they are still whole."""

import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from pipeline import disk
from pipeline.store import record
from pipeline.store.__main__ import main
from pipeline.store.store import Entry, Slot, Store
from stages.contracts import Checkpoint, UserError

ONE, OTHER = "1" * 64, "2" * 64
FILES, FILE_BYTES = 6, 2_000_000

FILLER = f"""
import json, sys, time
from pathlib import Path
from pipeline.store.store import Store

root, fingerprint, behaviour = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
signs = root.parent / "signs"

def say(word):
    (signs / word).write_text("")

def wait_for(word):
    end = time.monotonic() + 30
    while not (signs / word).exists():
        assert time.monotonic() < end, word
        time.sleep(0.01)

def waiting(who):
    print("waiting for", who, flush=True)
    say("waiting")

print("started", flush=True)
with Store(root).fill("prune", fingerprint, waiting, replace=behaviour in ("replace", "give_up")) as slot:
    if slot.entry:
        print("hit", slot.entry.path)
        sys.exit()
    print("working", flush=True)
    before = slot.resume / "checkpoint"
    before.write_text(str(int(before.read_text() or 0) + 1) if before.exists() else "1")
    if behaviour == "give_up":
        wait_for("waiting")
        sys.exit(1)
    if behaviour == "until_waiting":
        wait_for("waiting")
    if behaviour == "side_by_side":
        say(fingerprint)
        wait_for(("2" if fingerprint[0] == "1" else "1") * 64)
    for number in range({FILES}):
        (slot.out / f"{{number}}.bin").write_bytes(bytes([number]) * {FILE_BYTES})
    slot.publish(dict(stage="prune", fingerprint=fingerprint, inputs={{}}))
"""


def never_waiting(who: str) -> None:
    raise AssertionError(f"waited for {who}")


def meta(stage: str = "prune", fingerprint: str = ONE, **more) -> dict:
    made = {"stage": stage, "version": "1", "fingerprint": fingerprint, "config": {}, "inputs": {}}
    return {**made, "facts": {}, "metrics": {}, **more}


def put(store: Store, stage: str = "prune", fingerprint: str = ONE, content: bytes = b"weights", **more) -> Entry:
    with store.fill(stage, fingerprint, never_waiting, replace=True) as slot:
        (slot.out / "deep").mkdir()
        (slot.out / "deep" / "model.bin").write_bytes(content)
        (slot.out / "log.txt").write_text("done")
        return slot.publish(meta(stage, fingerprint, **more))


def fill(store: Store, body: Callable[[Slot], object]) -> None:
    with store.fill("prune", ONE, never_waiting) as slot:
        body(slot)


def scratch_of(store: Store, fingerprint: str = ONE) -> Path:
    return store.root / ".scratch" / f"prune-{fingerprint[:16]}"


def overwrite(path: Path, content: bytes) -> None:
    """As a bad disk would: past the read-only mode."""
    path.chmod(0o644)
    path.write_bytes(content)


def filler(root: Path, fingerprint: str = ONE, behaviour: str = "plain") -> subprocess.Popen:
    (root.parent / "signs").mkdir(exist_ok=True)
    command = [sys.executable, "-c", FILLER, str(root), fingerprint, behaviour]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def started_filler(root: Path, fingerprint: str = ONE) -> tuple[subprocess.Popen, float]:
    process = filler(root, fingerprint)
    assert process.stdout
    assert process.stdout.readline() == "started\n"
    return process, time.monotonic()


def published_names(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.glob("[!.]*/*")}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "runs" / "store")


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


# ---- gc and ls ----


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
