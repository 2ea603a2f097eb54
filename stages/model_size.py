"""Determines the size of a model without loading it: from config.json and the headers of its safetensors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HIDDEN = ("hidden_size", "d_model", "n_embd")
HEADS = ("num_attention_heads", "encoder_attention_heads", "num_heads", "n_heads", "n_head")
LAYERS = (("encoder_layers", "decoder_layers"), ("num_layers", "num_decoder_layers"), ("num_hidden_layers",),
          ("n_layers",), ("n_layer",))  # fmt: skip
"""Keys whose sum is the number of blocks; the first that are present count."""


@dataclass(frozen=True)
class ModelSize:
    parameters: float
    hidden: int
    layers: int
    """Number of blocks, of encoder and decoder together."""
    heads: int
    vocabulary: int
    gram_bytes: float = 0.0
    """Bytes of the Gram matrices (inputs times inputs, in fp32) of the block with the most; siblings share one."""
    largest_gram_bytes: float = 0.0


def of_folder(folder: Path) -> ModelSize | None:
    """Returns the size of a checkpoint in hub format; None if information is missing."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        headers = [_header(path) for path in folder.glob("*.safetensors")]
    except (OSError, ValueError):
        return None
    tensors = {name: tensor["shape"] for it in headers for name, tensor in it.items() if name != "__metadata__"}
    shapes = tensors.values()
    hidden, heads = (next((config[key] for key in keys if key in config), None) for keys in (HIDDEN, HEADS))
    layers = next((sum(config[key] for key in keys) for keys in LAYERS if all(key in config for key in keys)), None)
    vocabulary = config.get("vocab_size")
    if not (shapes and hidden and layers and heads and vocabulary):
        return None
    parameters = float(sum(map(math.prod, shapes)))
    return ModelSize(parameters, int(hidden), int(layers), int(heads), int(vocabulary), *_gram_bytes(tensors))


def _gram_bytes(tensors: Mapping[str, Sequence[int]]) -> tuple[float, float]:
    """Returns the bytes of the block with the most, and of the largest matrix alone; stacked experts have one each."""
    blocks: dict[str, dict[tuple[str, int], float]] = {}
    largest = 0.0
    for name, shape in tensors.items():
        block = re.match(r"(.*?\.\d+)\.", name)
        if block and len(shape) in (2, 3):
            siblings = name.removesuffix(".weight").rpartition(".")[0]
            one = 4.0 * shape[-1] ** 2
            blocks.setdefault(block[1], {})[siblings, shape[-1]] = one * (shape[0] if len(shape) == 3 else 1)
            largest = max(largest, one)
    return max((sum(block.values()) for block in blocks.values()), default=0.0), largest


def _header(path: Path) -> Mapping[str, Any]:
    with path.open("rb") as file:
        found: Mapping[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return found
