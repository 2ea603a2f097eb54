"""Finds the linears of a decoder-only model that its forward pass only calls, once each, by running it on a few tokens.

Some models read the weight of a linear and never call it (Mamba's `dt_proj`) or besides calling it (HY-V4's
`weights_proj`, whose inputs take the dtype of its weight), call one twice, or have linears that a forward pass never
reaches. None of these can be pruned by its inputs, or replaced by a layer that keeps its weight in another form.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from engine.unfused import RoutedLinear

ROWS, TOKENS = 2, 3
"""Rows and tokens of the probe."""
_known: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()


def probe_ids(model: Any) -> Tensor:
    """Returns `ids_BT` of the probe: 2 rows of 3 tokens, on the model's device."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    return (torch.arange(1, ROWS * TOKENS + 1, device=model.device) % vocabulary).view(ROWS, TOKENS)


def not_replaceable(model: Any) -> dict[str, str]:
    """Returns, by name and with the reason, the model's linears that share their weight, are not called exactly once
    with one row of inputs for each token, or whose weight is read outside of that call.

    Runs one forward pass of the model; repeated calls for a model return the earlier result.
    """
    if model not in _known:
        _known[model] = _probe(model)
    return _known[model]


@torch.no_grad()
def _probe(model: Any) -> dict[str, str]:
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    # which experts are called depends on the tokens
    rows: dict[str, list[int]] = {name: [] for name in linears if not isinstance(linears[name], RoutedLinear)}

    def note(name: str) -> Any:
        return lambda module, args: rows[name].append(args[0].numel() // args[0].shape[-1])

    handles = [linears[name].register_forward_pre_hook(note(name)) for name in rows]
    was_training = model.training
    model.eval()
    try:
        with _noting_reads(linears) as read:
            model(input_ids=probe_ids(model), use_cache=False)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    owners: dict[int, list[str]] = defaultdict(list)
    for name, linear in linears.items():
        owners[id(linear.weight)].append(name)
    found = {}
    for name, linear in linears.items():
        seen = rows.get(name)
        others = [other for other in owners[id(linear.weight)] if other != name]
        if others:
            found[name] = f"its weight is that of {others[0]} too"
        elif name in read:
            found[name] = "its weight is read outside of its call"
        elif seen is None:
            continue
        elif not seen:
            found[name] = "a forward pass never calls it"
        elif len(seen) > 1:
            found[name] = f"it is called {len(seen)} times in a pass"
        elif seen[0] != ROWS * TOKENS:
            found[name] = f"it reads {seen[0]} rows where the model has {ROWS * TOKENS} tokens"
    return found


@contextmanager
def _noting_reads(linears: Mapping[str, nn.Linear]) -> Iterator[set[str]]:
    """Collects, within the block, the linears whose weight is read while they do not run."""
    outside: set[str] = set()
    running: set[nn.Module] = set()
    names = {linear: name for name, linear in linears.items()}
    kinds = {linear: type(linear) for linear in linears.values()}

    def weight(linear: Any) -> Any:
        if linear not in running:
            outside.add(names[linear])
        return linear._parameters["weight"]

    handles = []
    for linear, kind in kinds.items():
        # a property of the class comes before the parameters of a module
        linear.__class__ = type(kind.__name__, (kind,), {"weight": property(weight)})
        handles.append(linear.register_forward_pre_hook(lambda module, args: running.add(module)))
        handles.append(linear.register_forward_hook(lambda module, args, output: running.discard(module)))
    try:
        yield outside
    finally:
        for linear, kind in kinds.items():
            linear.__class__ = kind
        for handle in handles:
            handle.remove()
