"""What a power cut or a bad disk does to checkpoints: the same line goes on, neither stuck nor silently wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.log import StageLog
from pipeline.store.store import Store
from stages import json_lines, sealed
from stages.contracts import CURVES, Artifact, Checkpoint
from stages.finetune import run as finetune
from stages.prune import run as prune
from stages.prune.spec import PruneOptions
from tests import tiny
from tests.recording import DyingLog, Killed, KilledLog, RecordingLog
from tests.running_stages import assert_same_weights, finetuned, timeless
from tests.stage_options import finetuning, pruning
from tests.tiny import text_data
from tests.tiny_training import sparse

Damage = Callable[[Path], object]


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def put(value: object) -> Damage:
    return lambda path: path.write_text(json.dumps(value))


def of_other_shape(path: Path) -> None:
    """Sealed, as an older version may have left it."""
    path.write_text(json.dumps({"step": 4, "loss": 1.0}))
    seal = path.parent / sealed.SEAL
    seal.write_text(json.dumps(json.loads(seal.read_text()) | {path.name: sealed.digest(path)}))


FILES = ("weights.safetensors", "optimizer.safetensors", "masks.safetensors", "progress.json", sealed.SEAL)
DAMAGES = [
    *((name, damage) for name in FILES for damage in (cut_short, flip)),
    ("optimizer.safetensors", Path.unlink),
    *(("progress.json", put(value)) for value in ([], {"step": 999}, "text", None)),
    ("progress.json", of_other_shape),
    *((sealed.SEAL, put(value)) for value in ([], {}, 3)),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """An uninterrupted run, and what one left that was killed in step 6."""
    folder = tmp_path_factory.mktemp("trained")
    inputs: dict[str, Artifact] = {
        "model": sparse(folder / "sparse"),
        "teacher": Checkpoint(tiny.save_model(folder / "dense", seed=1), "dense"),
        "data": text_data(folder / "texts"),
    }
    config = finetuning(steps=6, checkpoint_every=2, teacher_cache_gb=1)
    _, whole, whole_log = finetuned(config, inputs, folder, "whole")
    log = DyingLog(folder / "resume", last=5)
    (folder / "out").mkdir()
    with pytest.raises(Killed):
        finetune.run(config, inputs, folder / "out", log)
    return {"inputs": inputs, "config": config, "whole": whole, "log": whole_log, "left": log}


def go_on(trained: dict[str, object], folder: Path, damage: Callable[[Path], None]) -> RecordingLog:
    """The same run after `damage` to what the killed one left; its result is that of the uninterrupted one."""
    left = trained["left"]
    assert isinstance(left, RecordingLog)
    shutil.copytree(left.resume, folder / "resume")
    damage(folder / "resume")
    log, out = RecordingLog(folder / "resume"), folder / "out"
    log.points = list(left.points)
    out.mkdir()
    finetune.run(trained["config"], trained["inputs"], out, log)  # type: ignore[arg-type]
    assert_same_weights(trained["whole"], Checkpoint(out, "resumed"))  # type: ignore[arg-type]
    return log


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_the_checkpoint_before_a_damaged_one_serves(
    name: str, damage: Damage, trained: dict[str, object], tmp_path: Path
) -> None:
    log = go_on(trained, tmp_path, lambda folder: damage(folder / "step_00000004" / name) and None)
    assert len(log.notes) == 2
    assert "step_00000004 is unusable" in log.notes[0]
    assert "the checkpoint before it is used" in log.notes[0]
    assert log.notes[1] == "resumes after step 2 of 6"
    whole = trained["log"]
    assert isinstance(whole, RecordingLog)
    assert timeless(log.points) == timeless(whole.points)


def test_training_starts_again_where_no_checkpoint_is_whole(trained: dict[str, object], tmp_path: Path) -> None:
    def damage(folder: Path) -> None:
        for checkpoint in folder.glob("step_*"):
            flip(checkpoint / "weights.safetensors")

    log = go_on(trained, tmp_path, damage)
    assert len(log.notes) == 1
    assert "training starts again" in log.notes[0]


def test_a_checkpoint_under_another_name_is_not_believed(trained: dict[str, object], tmp_path: Path) -> None:
    log = go_on(trained, tmp_path, lambda folder: (folder / "step_00000004").rename(folder / "step_00000005") and None)
    assert "step is 4 of 6" in log.notes[0]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("teacher_states.bf16", damage) for damage in (cut_short, flip, Path.unlink)),
        *(("teacher_states.json", damage) for damage in (cut_short, put([]), put({"rows": 1}))),
    ],
)
def test_damaged_teacher_states_are_made_again(
    name: str, damage: Damage, trained: dict[str, object], tmp_path: Path
) -> None:
    log = go_on(trained, tmp_path, lambda folder: damage(folder / name) and None)
    assert "the cached teacher states of an earlier attempt are damaged" in log.notes[0]
    assert "teacher states" in log.bars


@pytest.mark.parametrize("damage", [cut_short, flip, Path.unlink])
@pytest.mark.parametrize("name", ["block.safetensors", sealed.SEAL])
def test_a_damaged_block_is_pruned_again(name: str, damage: Damage, tmp_path: Path) -> None:
    config = PruneOptions(prune=pruning(method="magnitude"), sparsity=0.5)
    inputs: dict[str, Artifact] = {"model": Checkpoint(tiny.save_model(tmp_path / "m"), "m")}
    for folder in ("out", "killed", "whole"):
        (tmp_path / folder).mkdir()
    prune.run(config, inputs, tmp_path / "whole", RecordingLog(tmp_path / "resume of whole"))
    with pytest.raises(Killed):
        prune.run(config, inputs, tmp_path / "killed", KilledLog(tmp_path / "resume"))
    damage(tmp_path / "resume" / "block_0000" / name)
    log = RecordingLog(tmp_path / "resume")
    prune.run(config, inputs, tmp_path / "out", log)
    assert len(log.notes) == 1
    assert "block_0000 of an earlier attempt is unusable" in log.notes[0]
    assert_same_weights(Checkpoint(tmp_path / "whole", ""), Checkpoint(tmp_path / "out", ""))


@pytest.mark.parametrize("content", [b"[]", b"3", b"{", b"\xff", b'{"made_of": []}'])
def test_a_damaged_record_of_what_checkpoints_were_made_of_deletes_them(content: bytes, tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.fill("dense", "f" * 64, lambda who: None) as slot:
        slot.resume_from({"code": "any"}, anew=False)
        (slot.resume / "step_00000002").mkdir()
    record = tmp_path / ".scratch" / f"dense-{'f' * 16}" / "resume.json"
    with store.fill("dense", "f" * 64, lambda who: None) as slot:
        slot.resume_from({"code": "any"}, anew=False)
        assert list(slot.resume.iterdir())
    record.write_bytes(content)
    with store.fill("dense", "f" * 64, lambda who: None) as slot:
        slot.resume_from({"code": "any"}, anew=False)
        assert not list(slot.resume.iterdir())


def test_a_damaged_curve_loses_its_damaged_points_only(tmp_path: Path) -> None:
    good = [{"step": step, "time": 1.0, "metrics": {"loss": 2.0}} for step in (1, 2, 3)]
    odd = [
        b"[]",
        b"3",
        b'{"step": 1}',
        b'{"step": "x", "time": 1, "metrics": {}}',
        b"\xff{",
        b'{"step": 2, "time": 1.0, "m',
    ]
    lines = [json.dumps(point).encode() for point in good]
    for folder in ("out", "resume"):
        (tmp_path / folder).mkdir()
    (tmp_path / "resume" / CURVES).write_bytes(b"\n".join([*odd[:5], *lines, odd[5]]))
    sent: list[int] = []
    asked = iter([False, True])
    with StageLog(
        "dense", tmp_path / "out", tmp_path / "resume", Console(quiet=True), False,
        lambda values, step, at: sent.append(step), tmp_path / "progress.json", "cpu", lambda: next(asked),
    ) as log:  # fmt: skip
        assert (log.should_stop, log.should_stop) == (False, True)
        log.rewind(2)
    assert sent == [1, 2]
    assert list(json_lines.read(tmp_path / "out" / CURVES)) == good[:2]
