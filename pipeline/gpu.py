"""Detects the GPUs that a run would compute on, without torch."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
from pathlib import Path

from stages.contracts import UserError

DRIVER = Path("/proc/driver/nvidia/gpus")


def models() -> list[str]:
    """Returns the names of NVIDIA GPUs; empty where none is visible, or where the system does not list them (then set
    `device=cuda`, which is also the name for AMD's builds of torch)."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return []
    return [_model(card) for card in sorted(DRIVER.glob("*/information"))]


def memory_bytes() -> float | None:
    """Returns the memory of the GPU that a job uses, as `nvidia-smi` reports it; None if it cannot."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(
            [*command, f"--id={first or 0}"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
        return float(said.strip()) * (1 << 20)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def check(device: str) -> None:
    """Raises UserError where torch cannot compute on this GPU. Imports torch only where nothing else can tell."""
    if not _torch_is_built_for_them():
        raise UserError("this torch is built without support for GPUs; expected cpu, or a build with CUDA", "device")
    if not models():
        importlib.import_module("stages.devices").of(device)


def _torch_is_built_for_them() -> bool:
    """Reads the file in which torch records its build; asks torch itself where there is no such file."""
    found = importlib.util.find_spec("torch")
    file = Path(found.origin).with_name("version.py") if found and found.origin else None
    if file is None or not file.exists():
        return True
    text = file.read_text(encoding="utf-8")
    without_cuda = re.search(r"^cuda\b.* = None$", text, re.MULTILINE)
    return not without_cuda or bool(re.search(r"^hip\b.* = ['\"]", text, re.MULTILINE))


def _model(card: Path) -> str:
    lines = card.read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("Model:")), "NVIDIA GPU")
