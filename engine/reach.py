"""Which linears of a decoder-only model its forward pass calls, found by running it on a few tokens.

Some models read the weight of a linear and never call it (Mamba's `dt_proj`), call one twice, or have linears that a
forward pass never comes to. None of these can be pruned by what it reads, or replaced by another layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from engine.unfused import RoutedLinear

ROWS, TOKENS = 2, 3
"""Of the probe."""
_known: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()


def probe_ids(model: Any) -> Tensor:
    """`ids_BT` of the probe: 2 rows of 3 tokens, on the model's device."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    return (torch.arange(1, ROWS * TOKENS + 1, device=model.device) % vocabulary).view(ROWS, TOKENS)


def not_replaceable(model: Any, linears: Mapping[str, nn.Module]) -> dict[str, str]:
    """Name -> why, of those among `linears` that are not called exactly once with one row of inputs for each token.

    Runs one forward pass of the model; a model that was asked about before answers from memory.
    """
    if model not in _known:
        _known[model] = _probe(model, linears)
    return _known[model]


@torch.no_grad()
def _probe(model: Any, linears: Mapping[str, nn.Module]) -> dict[str, str]:
    # which experts are called depends on the tokens
    rows: dict[str, list[int]] = {name: [] for name in linears if not isinstance(linears[name], RoutedLinear)}

    def note(name: str) -> Any:
        return lambda module, args: rows[name].append(args[0].numel() // args[0].shape[-1])

    handles = [linears[name].register_forward_pre_hook(note(name)) for name in rows]
    was_training = model.training
    model.eval()
    try:
        model(input_ids=probe_ids(model), use_cache=False)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    found = {}
    for name, seen in rows.items():
        if not seen:
            found[name] = "a forward pass never calls it"
        elif len(seen) > 1:
            found[name] = f"it is called {len(seen)} times in a pass"
        elif seen[0] != ROWS * TOKENS:
            found[name] = f"it reads {seen[0]} rows where the model has {ROWS * TOKENS} tokens"
    return found
