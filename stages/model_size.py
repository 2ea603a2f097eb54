"""How large a model is, without loading it: from config.json and the headers of its safetensors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HIDDEN = ("hidden_size", "d_model", "n_embd")
HEADS = ("num_attention_heads", "encoder_attention_heads", "num_heads", "n_heads", "n_head")
LAYERS = (("encoder_layers", "decoder_layers"), ("num_layers", "num_decoder_layers"), ("num_hidden_layers",),
          ("n_layers",), ("n_layer",))  # fmt: skip
"""Keys whose sum is the number of blocks; the first that are there count."""


@dataclass(frozen=True)
class ModelSize:
    parameters: float
    hidden: int
    layers: int
    """Blocks, of encoder and decoder together."""
    heads: int
    vocabulary: int


def of_folder(folder: Path) -> ModelSize | None:
    """Of a checkpoint in hub format; None where something to tell it by is missing."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        headers = [_header(path) for path in folder.glob("*.safetensors")]
    except (OSError, ValueError):
        return None
    shapes = [tensor["shape"] for header in headers for name, tensor in header.items() if name != "__metadata__"]
    hidden, heads = (next((config[key] for key in keys if key in config), None) for keys in (HIDDEN, HEADS))
    layers = next((sum(config[key] for key in keys) for keys in LAYERS if all(key in config for key in keys)), None)
    vocabulary = config.get("vocab_size")
    if not (shapes and hidden and layers and heads and vocabulary):
        return None
    return ModelSize(float(sum(map(math.prod, shapes))), int(hidden), int(layers), int(heads), int(vocabulary))


def _header(path: Path) -> Mapping[str, Any]:
    with path.open("rb") as file:
        found: Mapping[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return found
