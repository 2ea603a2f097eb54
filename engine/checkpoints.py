"""Reads checkpoints to convert: Hugging Face checkpoints in floating point, and in W8A8
(`engine.quantized_folders`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoFeatureExtractor, AutoTokenizer

from engine import quantized_folders, skeleton
from engine.architectures import auto_class, reads_speech
from engine.errors import EngineError
from engine.unfused import unfuse_
from engine.weights import Quantized

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def read_checkpoint(folder: Path | str) -> tuple[Any, dict[str, Quantized]]:
    """Returns the model in fp32, and the int8 weights of its quantized linears by dotted name (none for a checkpoint in
    floating point). In the model these linears have their dequantized weights.

    Raises EngineError for weights that are missing, unexpected, or of another shape than in config.json.
    """
    folder = Path(folder)
    if quantized_folders.quantization_config(folder) is not None:
        return _read_quantized(folder)
    return _read_floating(folder), {}


def read_tokenizer(folder: Path | str) -> Any:
    """Returns the tokenizer of a checkpoint or an engine folder, or None if it has none."""
    if not any((Path(folder) / name).exists() for name in TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"{folder}: the tokenizer cannot be read: {error}") from None


def read_feature_extractor(folder: Path | str) -> Any:
    """Returns the converter of audio into the features that a speech model reads; None for models that read text."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return AutoFeatureExtractor.from_pretrained(folder, local_files_only=True) if reads_speech(config) else None
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"{folder}: the feature extractor cannot be read: {error}") from None


def _read_floating(folder: Path) -> Any:
    if not (folder / "config.json").exists():
        raise EngineError(f"there is no config.json in {folder}; expected the folder of a model in hub format")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model, found = auto_class(config).from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise EngineError(f"{folder}: the checkpoint cannot be read: {error}") from None
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if odd := sorted(map(str, found[what])):
            raise EngineError(f"{folder}: {len(odd)} {what.replace('_', ' ')} in the weights, first {odd[0]}")
    unfuse_(model)
    return model.requires_grad_(False).eval()


def _read_quantized(folder: Path) -> tuple[Any, dict[str, Quantized]]:
    def dequantize(linear: nn.Linear, weight: Quantized) -> nn.Linear:
        W_OI = weight.q_OI.float() * weight.scale_O[:, None]
        linear.weight = nn.Parameter(W_OI, requires_grad=False)
        return linear

    model = skeleton.build(folder)
    return model, quantized_folders.load(folder, model, dequantize, torch.float32)
