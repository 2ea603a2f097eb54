"""Builds a model's architecture without memory for its weights, and assigns weights to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig

from engine.architectures import auto_class
from engine.errors import EngineError
from engine.unfused import unfuse_


def build(folder: Path) -> Any:
    """Returns the model of config.json in eval mode: fp32 parameters on the meta device, tied; buffers computed.

    Raises EngineError if the config is not that of a language or speech model that transformers knows.
    """
    if not (folder / "config.json").exists():
        raise EngineError(f"there is no config.json in {folder}; expected the folder of a model in hub format")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        # of a quantized checkpoint: it describes the file, not this model
        vars(config).pop("quantization_config", None)
        with init_empty_weights(include_buffers=False):
            model = auto_class(config).from_config(config, dtype=torch.float32, trust_remote_code=False)
        model.tie_weights()
        unfuse_(model)
        if (folder / "generation_config.json").exists():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    except Exception as error:  # a wrong value in a config can raise anything
        raise EngineError(f"{folder}: no language model can be built from config.json: {error}") from None
    return model.requires_grad_(False).eval()


def assign(
    model: nn.Module, tensors: dict[str, Tensor], apart: Collection[str] = (), dtype: torch.dtype | None = torch.float32
) -> None:
    """Gives every parameter and buffer except those named `apart` its tensor, tied parameters one tensor.
    Floating-point tensors must be in `dtype`; None: in any.

    A tied parameter is stored under its first name; a tensor under another of its names is a parameter of its own, as
    with heads of T5 v1.1, which transformers' configuration calls tied and its checkpoints do not tie. Raises
    EngineError unless `tensors` are exactly those of the model.
    """
    expected = {name: tensor for name, tensor in model.state_dict().items() if name not in apart}
    aliases = {names[0]: names for names in _tied(model)}
    second = second_names(model)
    if odd := sorted((expected.keys() - second - tensors.keys()) | (tensors.keys() - expected.keys())):
        what = "missing" if odd[0] in expected else "unexpected"
        raise EngineError(f"{len(odd)} tensors are missing or too many in the checkpoint, first: {odd[0]} is {what}")
    parameters = dict(model.named_parameters())
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        wanted = expected[name]
        floats = tensor.is_floating_point() and wanted.is_floating_point()
        stored = (dtype or tensor.dtype) if floats else wanted.dtype
        if tensor.shape != wanted.shape or tensor.dtype != stored:
            raise EngineError(
                f"{name}: is {tensor.dtype} {list(tensor.shape)}, the architecture in config.json expects "
                f"{stored} {list(wanted.shape)}"
            )
        value = nn.Parameter(tensor, requires_grad=False) if name in parameters else tensor
        state |= {name: value} | {other: value for other in aliases.get(name, ()) if other not in tensors}
    # strict would miss the modules apart; that names agree is checked above
    model.load_state_dict(state, strict=False, assign=True)


def second_names(model: nn.Module) -> set[str]:
    """Returns all names but the first of parameters that have several."""
    return {name for names in _tied(model) for name in names[1:]}


def _tied(model: nn.Module) -> list[list[str]]:
    """Returns the names of each parameter that has several, the first one first."""
    names = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return [group for group in names.values() if len(group) > 1]
