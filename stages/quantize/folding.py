"""Finds where SmoothQuant's scales can be folded: into what produces the input of the linears, where that changes
nothing else.

A producer (a norm, or a linear such as v for o and up for down) can take the scale of its readers when its output,
multiplied channel by channel, arrives in the readers' input multiplied channel by channel, and nowhere else. That is
tested, not inferred from names: in one pass the outputs are multiplied by powers of two and the readers' inputs divided
by them. Powers of two make no rounding errors, so the logits stay the same to the last bit, or the fold is wrong:
another reader (a residual, a router, a block that shares keys and values), a norm in between, another order of heads.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stages.quantize.wiring import Wiring

SAME = 1e-6
"""Share of the largest logit that kernels with another order of summation may change."""

Form = Literal["weight", "weight_plus_one"]
"""How the output of a norm or a linear depends on its weight."""


@dataclass(frozen=True)
class Fold:
    producer: str
    form: Form
    readers: list[str]
    channels_I: Tensor  # noqa: N815
    """For each input channel of the readers: the producer's output channel that it comes from."""

    def producer_scale(self, s_I: Tensor) -> Tensor:
        """Returns `s_J` of the producer's channels: the largest `s_I` of those that come from it."""
        s_J = torch.zeros(int(self.channels_I.max()) + 1)
        return s_J.scatter_reduce(0, self.channels_I, s_I, "amax")


@torch.inference_mode()
def folds(
    model: nn.Module, inputs: Mapping[str, Tensor], found: Wiring, prunable: Collection[str], targets: Collection[str]
) -> list[Fold]:
    """Returns the exact folds, at most one for each group of `found.shared` with a linear of `targets`.

    Corresponding places of all blocks of the same shapes are tested together: `model.layers.*.mlp.down_proj` folds in
    all of them or in none.
    """
    groups = _groups(model, found, prunable, targets)
    logits = _logits(model, inputs)
    result: list[Fold] = []
    for alike in _alike(model, found, groups):
        for candidates in _candidates(model, found, prunable, alike):
            if _changes_nothing(model, inputs, candidates, logits):
                result += candidates
                break
    taken = Counter(fold.producer for fold in result)
    return [fold for fold in result if taken[fold.producer] == 1]


@torch.no_grad()
def fold_(model: nn.Module, fold: Fold, s_I: Tensor, stored: torch.dtype) -> None:
    """Divides the producer's output by a scale and multiplies the readers' columns by it, in place.

    The scale is `s_I`, or for channels with the same source the largest of theirs, adjusted slightly so that the weight
    of a norm is a number of the dtype `stored`, in which it will be rounded.
    """
    producer: Any = model.get_submodule(fold.producer)
    s_J = fold.producer_scale(s_I)
    if isinstance(producer, nn.Linear):
        producer.weight.div_(s_J[:, None])
    else:
        s_J = _divide_norm_(producer, fold.form, s_J, stored)
    if getattr(producer, "bias", None) is not None:
        producer.bias.div_(s_J)
    for name in fold.readers:
        model.get_parameter(f"{name}.weight").mul_(s_J[fold.channels_I])


def _divide_norm_(norm: Any, form: Form, s_J: Tensor, stored: torch.dtype) -> Tensor:
    """Returns the scale by which the norm's factor was actually divided."""
    plus = 1.0 if form == "weight_plus_one" else 0.0
    factor_J = norm.weight + plus
    norm.weight.copy_((factor_J / s_J - plus).to(stored))
    now_J = norm.weight + plus
    return torch.where(now_J != 0, factor_J / now_J, s_J)


def _groups(
    model: nn.Module, found: Wiring, prunable: Collection[str], targets: Collection[str]
) -> dict[int, list[str]]:
    """Returns linears that share an input which a fold may change: those in the blocks, in one group, with a weight of
    their own."""
    seen = Counter(name for names in found.shared for name in names)
    own = _with_own_parameters(model)
    return {
        i: names
        for i, names in enumerate(found.shared)
        if any(name in targets for name in names)
        and all(name in prunable and seen[name] == 1 and name in own for name in names)
    }


def _alike(model: nn.Module, found: Wiring, groups: Mapping[int, list[str]]) -> Iterable[dict[int, list[str]]]:
    """Returns the groups by their place in the block and the shapes of the block's linears."""
    shapes: dict[str, set[tuple[str, torch.Size]]] = defaultdict(set)
    for name in (name for names in found.shared for name in names):
        shapes[_block(name)].add((_kind(name), _linear(model, name).weight.shape))
    alike: dict[Any, dict[int, list[str]]] = defaultdict(dict)
    for i, names in groups.items():
        alike[_kind(names[0]), frozenset(shapes[_block(names[0])])][i] = names
    return alike.values()


def _candidates(
    model: nn.Module, found: Wiring, prunable: Collection[str], groups: Mapping[int, list[str]]
) -> Iterator[list[Fold]]:
    """Yields hypotheses for corresponding groups, one fold for each group, the most probable first."""
    own = _with_own_parameters(model)
    norms = [found.norms.get(i) for i in groups]
    if all(norm is not None and norm in own and found.runs[norm] == 1 for norm in norms):
        of_norms = [
            _of_norm(model, found, str(norm), names) for norm, names in zip(norms, groups.values(), strict=True)
        ]
        exact = [fold for fold in of_norms if fold is not None]
        if len(exact) == len(of_norms):
            yield exact
        return
    if any(norm is not None for norm in norms):
        return
    first = next(iter(groups.values()))[0]
    in_features = _linear(model, first).in_features
    for kind, size in _earlier(model, found, prunable, first):
        producers = [_sibling(found, kind, group[0]) for group in groups.values()]
        if any(name is None or name not in own or found.runs[name] != 1 for name in producers):
            continue
        for channels_I in _orders(in_features, size):
            hypotheses = [
                Fold(str(name), "weight", group, channels_I)
                for name, group in zip(producers, groups.values(), strict=True)
            ]
            if all(_fits(model, fold) for fold in hypotheses):
                yield hypotheses


def _of_norm(model: nn.Module, found: Wiring, name: str, readers: list[str]) -> Fold | None:
    norm: Any = model.get_submodule(name)
    form = _form(norm, found.norm_inputs[name])
    size = norm.weight.numel()
    if form is None or any(_linear(model, reader).in_features != size for reader in readers):
        return None
    return Fold(name, form, readers, torch.arange(size))


def _form(norm: Any, args: Sequence[Any]) -> Form | None:
    """Determines by two runs how the norm's output depends on its weight; None if in neither way."""
    y, r_J = norm(*args), _powers(norm.weight.numel())
    before = {name: parameter.detach().clone() for name, parameter in norm.named_parameters()}
    if not before.keys() <= {"weight", "bias"}:
        return None
    forms: dict[Form, float] = {"weight": 0.0, "weight_plus_one": 1.0}
    for form, plus in forms.items():
        norm.weight.copy_((before["weight"] + plus) * r_J - plus)
        if "bias" in before:
            norm.bias.copy_(before["bias"] * r_J)
        scaled = norm(*args)
        for name, parameter in norm.named_parameters():
            parameter.copy_(before[name])
        if torch.allclose(scaled, y * r_J, rtol=1e-4, atol=1e-5 * float(y.abs().max())):
            return form
    return None


def _earlier(model: nn.Module, found: Wiring, prunable: Collection[str], reader: str) -> Iterator[tuple[str, int]]:
    """Returns the kinds of linears that run before `reader` in its block, the last first, with their number of outputs.
    Linears that are left alone take no scale, since they may compute in another way."""
    order = [name for names in found.shared for name in names if name in prunable]
    in_features = _linear(model, reader).in_features
    for name in reversed(order[: order.index(reader)]):
        if _numbers(name) == _numbers(reader) and _block(name) == _block(reader):
            size = _linear(model, name).out_features
            if in_features % size == 0:
                yield _kind(name), size


def _sibling(found: Wiring, kind: str, reader: str) -> str | None:
    """Returns the linear of a kind in the same block as `reader`."""
    for names in found.shared:
        for name in names:
            if _kind(name) == kind and _numbers(name) == _numbers(reader):
                return name
    return None


def _orders(in_features: int, size: int) -> Iterator[Tensor]:
    """Yields possible `channels_I`: in order; or by heads of every size, each for several of the reader's."""
    if in_features == size:
        yield torch.arange(size)
        return
    columns_I, repeats = torch.arange(in_features), in_features // size
    for head in range(size, 0, -1):
        if size % head == 0:
            yield columns_I // (head * repeats) * head + columns_I % head


def _linear(model: nn.Module, name: str) -> nn.Linear:
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear), name
    return linear


def _fits(model: nn.Module, fold: Fold) -> bool:
    return all(_linear(model, name).in_features == len(fold.channels_I) for name in fold.readers)


def _changes_nothing(model: nn.Module, inputs: Mapping[str, Tensor], folds: Sequence[Fold], logits: Tensor) -> bool:
    with _scaled(model, folds):
        found = _logits(model, inputs)
    # a misplaced scale may cause an overflow: NaN is not equal
    return bool((found - logits).abs().max() <= SAME * logits.abs().max())


@contextmanager
def _scaled(model: nn.Module, folds: Sequence[Fold]) -> Iterator[None]:
    """Multiplies the producers' outputs by powers of two, and divides their readers' inputs by them, within the
    block."""

    def multiply(r_J: Tensor) -> Callable[..., Any]:
        return lambda module, args, output: output * r_J

    def divide(r_I: Tensor) -> Callable[..., Any]:
        return lambda module, args: (args[0] / r_I, *args[1:])

    handles = []
    for fold in folds:
        r_J = _powers(int(fold.channels_I.max()) + 1)
        handles.append(model.get_submodule(fold.producer).register_forward_hook(multiply(r_J)))
        for name in fold.readers:
            reader = model.get_submodule(name)
            handles.append(reader.register_forward_pre_hook(divide(r_J[fold.channels_I])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _powers(size: int) -> Tensor:
    """Returns powers of two from 1/4 to 4, in an order without a pattern."""
    return 2.0 ** torch.randint(-2, 3, (size,), generator=torch.Generator().manual_seed(size))


def _logits(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    logits_BTV: Tensor = model(**inputs, use_cache=False).logits
    return logits_BTV


def _with_own_parameters(model: nn.Module) -> set[str]:
    """Returns the names of modules that share no parameter with another module."""
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return {
        name
        for name, module in model.named_modules()
        if all(uses[id(parameter)] == 1 for parameter in module.parameters(recurse=False))
    }


def _kind(name: str) -> str:
    """Returns the name for all blocks: `model.layers.3.input_layernorm` -> `model.layers.*.input_layernorm`."""
    return re.sub(r"\.\d+\.", ".*.", name)


def _numbers(name: str) -> list[str]:
    return re.findall(r"\.(\d+)\.", name)


def _block(name: str) -> str:
    """Returns the name up to the last number."""
    return re.sub(r"^(.*\.\d+\.).*$", r"\1", name)
