"""Loads and saves checkpoints: the model, its tokenizer, its masks and its quantization together."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from engine.unfused import fused
from stages import families, masks
from stages.contracts import Checkpoint, UserError
from stages.families import structure
from stages.masks import Masks
from stages.quantize import schemes

SIDE_FILES = (
    structure.FILE,
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "target.spm",
    "target_vocab.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
)


def load(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> Any:
    """Returns the model in eval mode, with its masks checked. A quantized checkpoint has its quantized linears.

    dtype None keeps the stored one. Raises UserError if the stored weights do not fit the architecture.
    """
    family = families.of(checkpoint.path)
    if scheme := schemes.of(checkpoint):
        return scheme.load(checkpoint, family, dtype)
    model = family.load(checkpoint.path, dtype)
    masks.check(model, masks.of(checkpoint))
    return model


def save(model: Any, source: Checkpoint, pruned: Masks, out: Path) -> None:
    """Writes the model (safetensors), the masks if any, and `source`'s other files into `out`."""
    masks.check(model, pruned)
    with fused(model):
        model.save_pretrained(out)
    if pruned:
        masks.save(pruned, out / "masks.safetensors")
    copy_side_files(source, out)


def copy_side_files(source: Checkpoint, out: Path) -> None:
    """Copies the tokenizer's files and the description of the model's structure, unless they are there."""
    for name in SIDE_FILES:
        if (source.path / name).exists() and not (out / name).exists():
            shutil.copyfile(source.path / name, out / name)


def check_length(context: int, length: int, option: str) -> None:
    """Raises UserError if a sequence would be longer than the model's context."""
    if length > context:
        raise UserError(f"{length} tokens do not fit the model's context of {context}", option)
