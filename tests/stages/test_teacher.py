"""The teacher: its states, live and from a cache, and which teachers are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from stages.contracts import Artifact, Checkpoint, Corpus, UserError
from stages.devices import CPU
from stages.finetune.teacher import CachedTeacher, Teacher
from tests import tiny
from tests.recording import RecordingLog
from tests.running_stages import finetuned
from tests.stage_options import ALL, TASK, finetuning, training
from tests.tiny_training import FAMILY, qa_data


def test_no_teacher_is_read_without_distillation(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    del inputs["teacher"]
    _, _, log = finetuned(finetuning(TASK, steps=2), inputs, tmp_path)
    assert {name for name in log.points[0][1] if name.startswith("loss")} == {"loss", "loss_ce"}
    with pytest.raises(UserError, match="need a teacher"):
        finetuned(finetuning(ALL, steps=2), inputs, tmp_path, "b")


def test_a_changed_teacher_is_noticed(inputs: dict[str, Artifact]) -> None:
    assert isinstance(inputs["teacher"], Checkpoint)
    teacher = Teacher(inputs["teacher"], FAMILY, training(), all_layers=True, device=CPU)
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    teacher.check_untouched()
    next(teacher.model.parameters()).data[0, 0] += 1
    with pytest.raises(AssertionError, match="changed the teacher"):
        teacher.check_untouched()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cached_states_are_those_of_the_live_teacher(
    precision: str, inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that a killed run left are used again, on a disk that has no room for others."""
    teacher = inputs["teacher"]
    assert isinstance(teacher, Checkpoint)
    assert isinstance(inputs["data"], Corpus)
    config = training(teacher_cache_gb=1, precision=precision)
    live = Teacher(teacher, FAMILY, config, all_layers=True, device=CPU)
    rows = FAMILY.rows(live.model, teacher.path, inputs["data"], "train", 32, "")
    log = RecordingLog(tmp_path / "resume")
    cached = CachedTeacher(live, rows, torch.tensor([5, 2, 9, 2]), config, log, "finetune")
    asked = torch.tensor([9, 2])
    batch = rows.take(asked)
    for found, expected in zip(cached.states(asked, batch), live.states(asked, batch), strict=True):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), expected.float(), rtol=2**-7, atol=1e-3)
    again = RecordingLog(tmp_path / "resume")
    full = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    CachedTeacher(live, rows, torch.tensor([5, 2, 9, 2]), config, again, "finetune")
    assert log.bars
    assert not again.bars, "a complete cache was made again"


@pytest.mark.parametrize("all_layers", [True, False])
def test_states_of_padded_rows_are_cached_without_the_padding(
    all_layers: bool, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    teacher, data = inputs["teacher"], qa_data(tmp_path / "qa")
    assert isinstance(teacher, Checkpoint)
    config = training(teacher_cache_gb=1)
    live = Teacher(teacher, FAMILY, config, all_layers, CPU)
    rows = FAMILY.rows(live.model, teacher.path, data, "train", 48, "", packed=False)
    log = RecordingLog(tmp_path / "resume")
    cached = CachedTeacher(live, rows, torch.arange(12), config, log, "finetune")
    layers = 2 if all_layers else 1
    stored = int(rows.sizes[:12].sum()) * layers * 32 * 2
    assert (log.resume / "teacher_states.bf16").stat().st_size == stored
    asked = torch.tensor([7, 0, 11])
    batch = rows.take(asked)
    use_BT = batch["use"].bool()
    assert not use_BT.all()
    found = cached.states(asked, batch)
    assert len(found) == layers
    for h_BTD, expected_BTD in zip(found, live.states(asked, batch), strict=True):
        torch.testing.assert_close(h_BTD[use_BT].float(), expected_BTD[use_BT], rtol=2**-7, atol=1e-3)
        assert not h_BTD[~use_BT].any()


def test_training_from_the_cache_equals_the_live_teacher(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    live, _, _ = finetuned(finetuning(steps=6), inputs, tmp_path, "live")
    cached, _, log = finetuned(finetuning(steps=6, teacher_cache_gb=1), inputs, tmp_path, "cached")
    assert cached["validation_loss"] == pytest.approx(live["validation_loss"], rel=2e-3)
    assert log.bars == ["teacher states", "finetune"]
    # rows x tokens x layers x width x 2 bytes
    assert (log.resume / "teacher_states.bf16").stat().st_size == 24 * 32 * 2 * 32 * 2


def test_a_cache_over_budget_is_refused_before_any_work(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"9\.83e-05 GB") as caught:
        finetuned(finetuning(steps=6, teacher_cache_gb=1e-6), inputs, tmp_path)
    assert caught.value.option == "finetune.teacher_cache_gb"
    assert not list((tmp_path / "resume_a").iterdir())


def test_a_teacher_of_another_shape_is_refused(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    wide = tmp_path / "opt"
    tiny.save_model(wide, "opt")
    config = json.loads((wide / "config.json").read_text()) | {"num_hidden_layers": 1}
    (wide / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="of the teacher are"):
        finetuned(finetuning(), inputs | {"teacher": Checkpoint(wide, "wide")}, tmp_path)
