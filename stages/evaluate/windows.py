"""Stores the perplexity of each window, so that two models can be compared on the same windows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILE = "windows.jsonl"


def save(nll_N: Sequence[float], tokens: int, folder: Path) -> None:
    """Writes one line for each window: its number, its number of predicted tokens, and their mean NLL in nats."""
    rows = [{"window": i, "tokens": tokens, "nll": nll} for i, nll in enumerate(nll_N)]
    (folder / FILE).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def perplexity(sums_SK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns `score_S` from sums over windows: of NLL in nats, and of predicted tokens (K = 2)."""
    score_S: NDArray[np.float64] = np.exp(sums_SK[:, 0] / sums_SK[:, 1])
    return score_S
