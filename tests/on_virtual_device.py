"""Training, pruning and evaluation on another device than the CPU: nothing stays behind, the results are the same.

Run by test_devices in a process of its own: autograd wants to know all devices before its first backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file

from stages.calibrate import run as calibrate
from stages.contracts import Artifact, Calibration, Checkpoint, DataSet, Examples
from stages.dense import run as dense
from stages.dense.spec import DenseOptions
from stages.evaluate import run as evaluate
from stages.evaluate.spec import EvaluateOptions
from stages.finetune import run as finetune
from stages.finetune.spec import CubicOptions, FinetuneOptions
from stages.prepare import run as prepare
from stages.prepare.spec import PrepareOptions
from stages.prune import run as prune
from stages.prune.spec import PruneOptions
from tests import tiny, virtual_device
from tests.recording import RecordingLog
from tests.running_stages import stage_output
from tests.stage_options import ALL, TASK, calibrating, generating, pruning, training
from tests.tiny import text_data
from tests.tiny_pairs import start

KINDS = ("llama", "t5", "whisper")


@pytest.fixture(scope="module", autouse=True)
def virtual() -> Iterator[torch.device]:
    # as of parameters on CUDA, what is tied stays tied when a module is moved
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield virtual_device.register()
    torch.__future__.set_swap_module_params_on_conversion(before)


def ran(
    stage: ModuleType, asked: BaseModel, folder: Path, device: str, **inputs: Artifact
) -> tuple[Path, RecordingLog]:
    folder.mkdir(parents=True)
    log = RecordingLog(folder.parent / f"{folder.name}_resume", device)
    log.found["metrics"] = stage.run(asked, inputs, folder, log)
    return stage_output(folder, log), log


@pytest.fixture(scope="module", params=KINDS)
def given(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    data: DataSet
    if kind == "llama":
        model = Checkpoint(tiny.save_model(folder / "model"), "model")
        data = text_data(folder / "texts")
    else:
        model, corpus = start(kind, folder)
        data = Examples(ran(prepare, PrepareOptions(), folder / "examples", "cpu", model=model, data=corpus)[0], "data")
    drawn = ran(calibrate, calibrating(), folder / "drawn", "cpu", model=model, data=data)[0]
    return {"kind": kind, "folder": folder, "model": model, "data": data, "calibration": Calibration(drawn, "drawn")}


def both(stage: ModuleType, asked: BaseModel, given: dict[str, Any], name: str, **inputs: Artifact) -> list[Any]:
    """(folder, log) of the CPU and of the other device."""
    folder = given["folder"]
    return [ran(stage, asked, folder / f"{name}_{device}", device, **inputs) for device in ("cpu", virtual_device.NAME)]


def assert_same(found: list[Any]) -> None:
    (here, one), (there, other) = found
    for name, value in one.found["metrics"].items():
        if "second" not in name:
            assert other.found["metrics"][name] == pytest.approx(value, rel=1e-4), name
    tensors, others = (load_file(folder / "model.safetensors") for folder in (here, there))
    for name, tensor in tensors.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_the_virtual_device_refuses_tensors_of_two_devices(virtual: torch.device) -> None:
    with pytest.raises(RuntimeError, match="two devices"):
        torch.ones(2, device=virtual) + torch.ones(2)
    assert torch.ones(2, device=virtual).cpu().tolist() == [1, 1]


def test_training_and_distillation_are_those_of_the_cpu(given: dict[str, Any]) -> None:
    model, data, kind = given["model"], given["data"], given["kind"]
    few = {"optimizer": "adamw" if kind == "llama" else "adafactor", "precision": "fp32", "steps": 2}
    trained = both(dense, DenseOptions(training=training(**few), distill=TASK), given, "dense", model=model, data=data)
    assert_same(trained)
    rounded = PruneOptions(prune=pruning(method="magnitude"), sparsity=0.5)
    sparse = Checkpoint(ran(prune, rounded, given["folder"] / "sparse", "cpu", model=model)[0], "sparse")
    teacher = Checkpoint(trained[0][0], "dense")
    asked = FinetuneOptions(training=training(**few, teacher_cache_gb=int(kind == "t5")), distill=ALL)
    assert_same(both(finetune, asked, given, "tuned", model=sparse, data=data, teacher=teacher))


@pytest.mark.parametrize("method", ["sparsegpt", "wanda", "magnitude"])
def test_pruning_takes_the_same_weights(method: str, given: dict[str, Any]) -> None:
    if method != "sparsegpt" and given["kind"] != "llama":
        pytest.skip("the pruners of one linear know no families")
    model, calibration = given["model"], given["calibration"]
    first = PruneOptions(prune=pruning(method=method), sparsity=0.5)
    found = both(prune, first, given, method, model=model, calibration=calibration)
    assert_same(found)
    further = PruneOptions(prune=pruning(method=method), sparsity=0.75)
    half = Checkpoint(found[0][0], "half")
    assert_same(both(prune, further, given, f"{method}_75", model=half, calibration=calibration))


@pytest.mark.parametrize("given", ["llama"], indirect=True)
def test_gradual_pruning_goes_on_after_a_kill(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    cubic = CubicOptions(prune=pruning(), initial=0.25, final=0.5, begin_step=0, end_step=2, update_every=1)
    asked = FinetuneOptions(training=training(steps=4, checkpoint_every=2, precision="fp32"), distill=TASK, cubic=cubic)
    inputs = {key: given[key] for key in ("model", "data", "calibration")}
    reference = ran(finetune, asked, given["folder"] / "whole", "cpu", **inputs)
    whole = RecordingLog.metrics

    def killed(log: RecordingLog, values: dict[str, float], step: int = 0) -> None:
        if step == 3:
            raise KeyboardInterrupt
        whole(log, values, step)

    folder = given["folder"] / "killed"
    with monkeypatch.context() as patched:
        patched.setattr(RecordingLog, "metrics", killed)
        with pytest.raises(KeyboardInterrupt):
            ran(finetune, asked, folder, virtual_device.NAME, **inputs)
    folder.rmdir()
    again = ran(finetune, asked, folder, virtual_device.NAME, **inputs)
    assert "resumes after step 2" in again[1].notes[0]
    assert_same([reference, again])


def test_evaluation_is_that_of_the_cpu(given: dict[str, Any]) -> None:
    texts = given["kind"] == "llama"
    asked = EvaluateOptions.model_validate(
        {
            "perplexity": {"split": "test", "windows": 4, "length": 32} if texts else None,
            "generation": None if texts else generating(beams=2),
            "tasks": [], "batch_size": 2, "runtime": "torch",
        }
    )  # fmt: skip
    (_, here), (_, there) = both(evaluate, asked, given, "judged", model=given["model"], data=given["data"])
    assert here.found["metrics"] == pytest.approx(there.found["metrics"], rel=1e-4)
