"""Which device stages compute on, and that all of them compute wholly there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline import gpu
from pipeline.resolve import resolve
from stages import devices
from stages.contracts import UserError
from tests.composed import config

SIMULATED = Path(__file__).parents[1] / "on_virtual_device.py"


def test_stages_compute_the_same_on_another_device() -> None:
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", str(SIMULATED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=SIMULATED.parent.parent)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


def test_a_gpu_that_torch_cannot_see_is_refused() -> None:
    if torch.cuda.is_available():
        assert devices.of("cuda").type == "cuda"
        return
    with pytest.raises(UserError, match="finds no GPU; expected cpu") as caught:
        devices.of("cuda")
    assert caught.value.option == "device"


def test_auto_takes_the_gpu_that_the_system_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DRIVER", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu.models() == []
    assert resolve(config()).device == "cpu"
    card = tmp_path / "0000:01:00.0"
    card.mkdir()
    (card / "information").write_text("Model: \t\t NVIDIA A100-SXM4-80GB\nIRQ:   \t\t 90\n")
    assert gpu.models() == ["NVIDIA A100-SXM4-80GB"]
    settled = resolve(config())
    assert (settled.device, settled.finetune.precision) == ("cuda", "bf16")
    assert resolve(config("device=cpu")).device == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu.models() == []


def test_the_memory_of_a_gpu_is_what_its_tool_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\ncase "$*" in *--id=1) echo 81559;; *) exit 6;; esac\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert gpu.memory_bytes() == 81559 * 2**20
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert gpu.memory_bytes() is None
    tool.unlink()
    assert gpu.memory_bytes() is None
