"""Results put into a store, and processes that fill one."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.store.store import Entry, Slot, Store

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
