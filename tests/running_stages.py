"""Runs of a single stage in this process, and what they made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from stages.benchmark import run as benchmark
from stages.benchmark.spec import BenchmarkOptions
from stages.calibrate import run as calibrate
from stages.contracts import Artifact, Benchmark, Calibration, Checkpoint, Corpus
from stages.finetune import run as finetune
from stages.finetune.spec import FinetuneOptions
from tests.recording import RecordingLog
from tests.stage_options import calibrating


def stage_output(folder: Path, log: RecordingLog) -> Path:
    (folder / "meta.json").write_text(json.dumps({"facts": log.found, "metrics": {}}))
    return folder


def ran(folder: Path, stage: Any, asked: Any, name: str, inputs: dict[str, Artifact]) -> tuple[Any, RecordingLog]:
    out, log = folder / name, RecordingLog(folder / f"resume of {name}")
    out.mkdir()
    metrics = stage.run(asked, inputs, out, log)
    log.found["metrics"] = metrics
    stage_output(out, log)
    return Checkpoint(out, name), log


def calibrated(tmp_path: Path, model: Checkpoint, data: Corpus, **changes: Any) -> tuple[Calibration, RecordingLog]:
    log = RecordingLog(tmp_path / "resume of calibration")
    out = tmp_path / f"calibration {data.format} {changes}"
    out.mkdir()
    metrics = calibrate.run(calibrating(**changes), {"model": model, "data": data}, out, log)
    assert metrics["samples"] == log.found["samples"]
    return Calibration(out, "calibration"), log


def finetuned(
    config: FinetuneOptions, inputs: Mapping[str, Artifact], folder: Path, name: str = "a"
) -> tuple[dict[str, float], Checkpoint, RecordingLog]:
    out, log = folder / f"out_{name}", RecordingLog(folder / f"resume_{name}")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return finetune.run(config, inputs, out, log), Checkpoint(out, name), log


def weights_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return load_file(checkpoint.path / "model.safetensors")


def assert_same_weights(a: Checkpoint, b: Checkpoint) -> None:
    left, right = weights_of(a), weights_of(b)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def timeless(points: list[tuple[int, dict[str, float]]]) -> list[tuple[int, dict[str, float]]]:
    return [(step, {**values, "tokens_per_second": 0}) for step, values in points]


def benchmarked(
    tmp_path: Path, inputs: dict[str, Artifact], slice_: BenchmarkOptions
) -> tuple[dict[str, float], Benchmark, RecordingLog]:
    out, log = tmp_path / "out", RecordingLog(tmp_path / "resume")
    out.mkdir()
    return benchmark.run(slice_, inputs, out, log), Benchmark(out, "b"), log
