"""Computes the bytes of weights that decoding one token reads from memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from engine.architectures import reads_encoder
from engine.kernels import Matrix
from engine.linear import EngineLinear


def bytes_per_token(model: nn.Module) -> int:
    """Returns the bytes of everything except the unread rows of embedding tables, as the kernels store it; for an
    encoder-decoder those of its decoder. Raises EngineError for engine linears without kernels."""
    read: dict[int, Tensor | Matrix] = {}  # kept alive: unpacked weights are new tensors, whose ids would come again
    for module in decoding_modules(model):
        if not isinstance(module, nn.Embedding):  # a head tied to it is a linear, and read whole
            read |= {id(part): part for part in _parts(module)}
    return sum(_stored_bytes(part) for part in read.values())


def decoding_modules(model: Any) -> Iterator[nn.Module]:
    """Returns the modules that decoding one token runs. For an encoder-decoder these exclude the encoder, and the keys
    and values of cross-attention, which are in the cache by then."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        yield from model.modules()
        return
    yield from (module for name, module in model.get_decoder().named_modules() if not reads_encoder(name))
    yield model.get_output_embeddings()


def _parts(module: nn.Module) -> list[Tensor | Matrix]:
    if isinstance(module, EngineLinear):
        scale = [] if module.input_scale is None else [module.input_scale]
        return [(module.shared or module).matrix(), *scale]
    if isinstance(module, torch.ao.nn.quantized.dynamic.Linear):
        unpacked: list[Tensor | None] = [module.weight(), module.bias()]  # type: ignore[no-untyped-call]
        return [tensor for tensor in unpacked if tensor is not None]
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _stored_bytes(part: Tensor | Matrix) -> int:
    if isinstance(part, Matrix):
        return part.bytes
    if part.layout == torch.sparse_csr:
        return sum(tensor.nbytes for tensor in (part.values(), part.crow_indices(), part.col_indices()))
    return part.numel() * part.element_size()
