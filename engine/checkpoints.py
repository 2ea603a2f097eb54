"""What the engine converts: Hugging Face checkpoints in floating point, and the quantized ones of the pipeline.

A quantized checkpoint has a quantization.json beside its model.safetensors, which holds, for each linear NAME listed
there, `NAME.weight` (int8, O x I), `NAME.weight_scale` (fp32, O) and sometimes `NAME.input_scale` (fp32, I).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoFeatureExtractor, AutoTokenizer

from engine import skeleton
from engine.architectures import auto_class, reads_speech
from engine.errors import EngineError
from engine.unfused import unfuse_
from engine.weights import Quantized

QUANTIZED_FORMAT = "squarehead-w8a8-1"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def read_checkpoint(folder: Path | str) -> tuple[Any, dict[str, Quantized]]:
    """The model in fp32, and the int8 weights of its quantized linears by dotted name (none for a checkpoint in
    floating point). In the model these linears have their dequantized weights, SmoothQuant undone.

    Raises EngineError for weights that are missing, too many, or of another shape than config.json says.
    """
    folder = Path(folder)
    if (folder / "quantization.json").exists():
        return _read_quantized(folder)
    return _read_floating(folder), {}


def read_tokenizer(folder: Path | str) -> Any:
    """The tokenizer of a checkpoint or an engine folder, or None where it has none."""
    if not any((Path(folder) / name).exists() for name in TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"{folder}: the tokenizer cannot be read: {error}") from None


def read_feature_extractor(folder: Path | str) -> Any:
    """What turns audio into the features that a speech model reads; None for models that read text."""
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
    try:
        facts = json.loads((folder / "quantization.json").read_bytes())
        tensors = load_file(folder / "model.safetensors")
        stored, names = facts.get("format"), facts.get("linears")
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise EngineError(f"{folder}: the quantized checkpoint cannot be read: {error}") from None
    if stored != QUANTIZED_FORMAT or not isinstance(names, list):
        raise EngineError(f"{folder}: quantization.json has the format {stored!r}, expected {QUANTIZED_FORMAT!r}")
    quantized = {str(name): _take(folder, str(name), tensors) for name in names}
    for name, weight in quantized.items():
        W_OI = weight.q_OI.float() * weight.scale_O[:, None]
        tensors[f"{name}.weight"] = W_OI if weight.input_scale_I is None else W_OI / weight.input_scale_I
    model = skeleton.build(folder)
    in_fp32 = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    skeleton.assign(model, in_fp32)
    return model, quantized


def _take(folder: Path, name: str, tensors: dict[str, Tensor]) -> Quantized:
    q_OI, scale_O = tensors.get(f"{name}.weight"), tensors.pop(f"{name}.weight_scale", None)
    if q_OI is None or scale_O is None or q_OI.dtype != torch.int8 or scale_O.shape != q_OI.shape[:1]:
        raise EngineError(f"{folder}: {name} has no int8 weight with a scale for each output")
    input_scale_I = tensors.pop(f"{name}.input_scale", None)
    if input_scale_I is not None and input_scale_I.shape != q_OI.shape[1:]:
        raise EngineError(f"{folder}: {name} has {input_scale_I.numel()} input scales, expected {q_OI.shape[1]}")
    return Quantized(q_OI, scale_O, input_scale_I)
