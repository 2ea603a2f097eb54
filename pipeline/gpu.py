"""The GPUs that a run would compute on, told without torch."""

from __future__ import annotations

import os
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/gpus")


def models() -> list[str]:
    """Names of NVIDIA's GPUs; empty where none is visible, or where the system does not list them (then set
    `device=cuda`, which AMD's builds of torch are called as well)."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return []
    return [_model(card) for card in sorted(DRIVER.glob("*/information"))]


def _model(card: Path) -> str:
    lines = card.read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("Model:")), "NVIDIA GPU")
