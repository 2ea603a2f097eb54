"""Models and folders of the engine, and what its tests need of this machine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from engine import record, sources
from engine.linear import EngineLinear
from engine.weights import DType, PackedWeight
from stages.families import get
from stages.quantize import quantized, writing
from tests import tiny
from tests import tiny_encoder_decoders as tiny_models

needs_kernels = pytest.mark.skipif(
    sources.library() is None and not (shutil.which("c++") or shutil.which("g++")), reason="no C++ compiler here"
)
PHASES = ("qkv", "attention", "out", "up", "activation", "down", "head")
"""Of a step of a Llama."""
FAR = 24
"""Distance from which T5's positions are all in one bucket."""
GATE = "model.layers.0.mlp.gate_proj"
FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def llama(**changes: object) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 130, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, **changes})).eval()  # type: ignore[arg-type]


def pruned_encoder_decoder(kind: str) -> Any:
    """Its norms, biases and relative positions matter, and its activations see large values."""
    model = tiny_models.pruned(kind)
    torch.manual_seed(4)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.3)
        if name.endswith(("fc1.bias", "relative_attention_bias.weight")):
            nn.init.normal_(parameter, std=3)
    for module in model.modules():
        if hasattr(module, "relative_attention_max_distance"):
            module.relative_attention_max_distance = FAR
    return model


def encoder_input(kind: str, row: int = -1) -> dict[str, Tensor]:
    """The last row of T5's is padded."""
    return {name: tensor[row:][:1] for name, tensor in tiny_models.read(kind).items()}


def sparse_matrix(rows: int, columns: int, sparsity: float, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    W_OI = torch.randn(rows, columns, generator=draw)
    return W_OI.masked_fill(torch.rand(rows, columns, generator=draw) < sparsity, 0)


def packed_model(kind: str = "llama", dtype: DType = "int8", sparsity: float = 0.6, head: DType | None = None) -> Any:
    """A tiny model whose linears are the engine's, pruned at random; one row is empty and one input is smoothed."""
    model = tiny.build(kind)
    for number, (name, linear) in enumerate(get("causal_lm").prunable(model).items()):
        W_OI = linear.weight.detach() * (sparse_matrix(*linear.weight.shape, sparsity, number) != 0)
        W_OI[1] = 0
        smoothing = torch.linspace(0.5, 2, linear.in_features) if dtype == "int8" and number == 3 else None
        bias = None if linear.bias is None else linear.bias.detach()
        model.set_submodule(name, EngineLinear(PackedWeight.of(W_OI, dtype), bias, smoothing))
    if head is not None:
        model.set_submodule("lm_head", EngineLinear(PackedWeight.of(model.lm_head.weight, head)))
    return model.requires_grad_(False)


def tensors_of(folder: Path) -> dict[str, Tensor]:
    with safe_open(folder / record.WEIGHTS, "pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def reseal(folder: Path, tensors: dict[str, Tensor] | None = None, **metadata: str) -> None:
    """Writes other tensors, and an engine.json that vouches for the folder as it is now."""
    facts = record.read(folder)
    if tensors is not None:
        save_file(tensors, folder / record.WEIGHTS, {"format": record.FORMAT} | metadata)
    record.write(folder, facts)


def quantized_checkpoint(folder: Path) -> nn.Module:
    """As the pipeline writes it, one linear left in floating point."""
    tiny.save_tokenizer(folder)
    model = tiny.build()
    for number, (name, linear) in enumerate(get("causal_lm").prunable(model).items()):
        if number != 1:
            model.set_submodule(name, quantized.Int8Linear.of(linear))
    described = writing.quantization_config(tiny.build(), list(quantized.linears(model)), own=False)
    writing.save(model, {}, described, folder)
    return model
