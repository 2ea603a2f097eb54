"""Reads checkpoints to convert: Hugging Face checkpoints in floating point, and in W8A8
(`engine.quantized_folders`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoFeatureExtractor, AutoTokenizer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from engine import quantized_folders, skeleton
from engine.architectures import auto_class, reads_speech
from engine.errors import EngineError
from engine.unfused import unfuse_
from engine.weights import Quantized

OLD_BUFFERS = (".inv_freq", ".masked_bias", ".attn.bias", ".attention.bias")
"""Ends of names of tensors that older versions of transformers stored and that follow from the configuration."""
_INTEGER_BUFFERS = ("position_ids", "num_batches_tracked", "token_type_ids")
_FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of safetensors that hold weights. Narrower ones (F8_E4M3) stand for weights by a scale, as integers do."""
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
    except Exception as error:  # a wrong value in a file can raise anything
        raise EngineError(f"{folder}: the tokenizer cannot be read: {_one_line(error)}") from None


def read_feature_extractor(folder: Path | str) -> Any:
    """Returns the converter of audio into the features that a speech model reads; None for models that read text."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return AutoFeatureExtractor.from_pretrained(folder, local_files_only=True) if reads_speech(config) else None
    except Exception as error:  # a wrong value in a file can raise anything
        raise EngineError(f"{folder}: the feature extractor cannot be read: {_one_line(error)}") from None


def numbers_of_scales(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields name and kind of the weights of a folder that are no floating-point numbers of 16 bits or more, by the
    headers of the files that transformers reads; masks beside them are none. transformers would take such numbers for
    weights, which they are only times a scale."""
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (no mapping)
                    kind = tensors.get_slice(name).get_dtype()
                    if kind not in _FLOATS and not name.endswith((*OLD_BUFFERS, *_INTEGER_BUFFERS)):
                        yield name, kind
        except (SafetensorError, OSError):
            return  # loading says what is wrong


def _weight_files(folder: Path) -> list[Path]:
    """Returns the files that transformers reads weights from: those that an index names, or one."""
    try:
        index = json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_bytes())
        return sorted({folder / str(name) for name in index["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # loading says what is wrong with an index
        return [folder / SAFE_WEIGHTS_NAME]


def _one_line(error: Exception) -> str:
    is_clear = isinstance(error, OSError | ValueError | RuntimeError | SafetensorError)
    return ("" if is_clear else f"{type(error).__name__}: ") + " ".join(str(error).split())[:300]


def _read_floating(folder: Path) -> Any:
    if not (folder / "config.json").exists():
        raise EngineError(f"there is no config.json in {folder}; expected the folder of a model in hub format")
    for name, kind in numbers_of_scales(folder):
        raise EngineError(f"{folder}: {name} is stored as {kind}, a quantized number without its scale")
    try:
        if (folder / "generation_config.json").exists():  # transformers would go on without it
            json.loads((folder / "generation_config.json").read_bytes())
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model, found = auto_class(config).from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # a wrong value in a config can raise anything
        raise EngineError(f"{folder}: the checkpoint cannot be read: {_one_line(error)}") from None
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
