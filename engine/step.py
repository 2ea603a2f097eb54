"""Runs one decoding step in one call of the compiled code: the structures that it reads, and its caches."""

from __future__ import annotations

import ctypes
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine import kernels, structures
from engine.errors import EngineError
from engine.kernels import Matrix
from engine.layouts import ACTIVATIONS, Block, Kind, Layout
from engine.linear import EngineLinear
from engine.weights import PackedWeight

PHASES: dict[Kind, tuple[str, str, str]] = {
    "self_attention": ("qkv", "attention", "out"),
    "cross_attention": ("query", "cross_attention", "cross_out"),
    "mlp": ("up", "activation", "down"),
}
"""Phases of each kind of block: its first product, its middle, its second product; norms count towards the product that
follows them. The order is that of engine/native/decoder.h, where the head comes last."""
HEAD = "head"
MAX_CONTEXT = 4096
"""Positions of a cache for sequences of unknown length; memory for those never reached is never touched."""
ACTIVATION_CODES = ("silu", "relu", "gelu", "gelu_tanh")


@dataclass
class Profile:
    """Time of the steps by phase."""

    steps: int
    seconds: dict[str, float]
    """Seconds by phase, including waiting for the slowest thread."""
    weight_bytes: dict[str, int]
    """Bytes read by one step, for the phases that are products."""


class Step:
    """A decoder for one sequence of up to `context` positions. It keeps what it reads of a model, not the model."""

    def __init__(self, layout: Layout, context: int) -> None:
        if layout.positions is not None and context > len(layout.positions):
            raise EngineError(f"the context is {context}, the model has positions for {len(layout.positions)}")
        self.context = context
        self.sees_source = False
        """Whether cross-attention has something to look at."""
        self._alive: list[Any] = []  # whatever the structure points into
        self._bytes: Counter[str] = Counter()
        self._blocks = (structures.Block * len(layout.blocks))(*[self._block(block) for block in layout.blocks])
        self._shape = len(self._of_kind("self_attention")), layout.key_heads, context, layout.head_size
        self.begin()
        kinds = {block.kind for block in layout.blocks}
        self._phases = [name for kind in PHASES if kind in kinds for name in PHASES[kind]] + [HEAD]
        bias = layout.position_bias(context) if layout.position_bias else None
        self._structure = structures.Decoder(
            hidden=layout.embedding.shape[1],
            heads=layout.heads,
            key_heads=layout.key_heads,
            head_size=layout.head_size,
            block_count=len(layout.blocks),
            context=context,
            source=0,
            activation=ACTIVATION_CODES.index(ACTIVATIONS[layout.activation]),
            gated=any(block.kind == "mlp" and len(block.inputs) > 1 for block in layout.blocks),
            epsilon=layout.epsilon,
            attention_scale=layout.attention_scale,
            rotation_scale=layout.rotation_scale,
            frequencies=self._floats(layout.frequencies),
            embedding=self._floats(layout.embedding),
            positions=self._floats(layout.positions),
            bias=self._floats(bias),
            blocks=ctypes.addressof(self._blocks),
            final_norm=self._norm(layout.final_norm, layout.head_scale),
            head=self._stage(HEAD, [layout.head]),
        )
        self._logits = torch.empty(layout.head.out_features)
        self.weight_bytes = self._bytes.total()
        """Read by one step; norms, the embedding's row, and all keys and values left out."""
        self._forget()

    def begin(self, earlier: Sequence[tuple[Tensor, Tensor]] = ()) -> None:
        """Allocates memory for keys and values of self-attention. `earlier` are those of the positions so far, for each
        of its blocks, heads x positions x size."""
        self.keys, self.values = torch.zeros(self._shape), torch.zeros(self._shape)
        """Block, head, position, size; never touched where no position came to be."""
        for block, keys, values in zip(self._of_kind("self_attention"), self.keys, self.values, strict=True):
            block.keys, block.values = keys.data_ptr(), values.data_ptr()
        for number, (keys, values) in enumerate(earlier):
            self.keys[number, :, : keys.shape[1]], self.values[number, :, : keys.shape[1]] = keys, values

    def set_cross_attention_kv(self, sources: list[tuple[Tensor, Tensor]]) -> None:
        """Sets keys and values of the encoder's states for each block of cross-attention, heads x positions x size."""
        self._sources = [(keys.contiguous(), values.contiguous()) for keys, values in sources]
        for block, (keys, values) in zip(self._of_kind("cross_attention"), self._sources, strict=True):
            block.keys, block.values = keys.data_ptr(), values.data_ptr()
            self._structure.source = keys.shape[1]
        self.sees_source = True

    def run(self, token: int, position: int) -> Tensor:
        """Runs one token; returns `logits_V`, overwritten by the next step."""
        self._decode(token, position, self._logits, self._seconds)
        self._steps += 1
        return self._logits

    def run_prompt(self, tokens: Sequence[int]) -> Tensor:
        """Runs tokens from position 0 on; returns `logits_V` of the last. They do not count as steps."""
        seconds = _no_seconds()
        for position, token in enumerate(tokens):
            self._decode(token, position, self._logits if position == len(tokens) - 1 else None, seconds)
        return self._logits

    def _decode(self, token: int, position: int, logits_V: Tensor | None, seconds: Any) -> None:
        address, threads = ctypes.addressof(self._structure), torch.get_num_threads()
        kernels.decode(address, token, position, logits_V, threads, seconds)

    def profile(self) -> Profile:
        """Returns the profile of all steps since the last call."""
        seconds = dict(zip(_ALL_PHASES, self._seconds, strict=True))
        found = Profile(self._steps, {name: seconds[name] for name in self._phases}, dict(self._bytes))
        self._forget()
        return found

    def _forget(self) -> None:
        self._steps = 0
        self._seconds = _no_seconds()

    def _of_kind(self, kind: Kind) -> list[structures.Block]:
        return [block for block in self._blocks if block.kind == _KINDS.index(kind)]

    def _block(self, block: Block) -> structures.Block:
        first, _, last = PHASES[block.kind]
        return structures.Block(
            kind=_KINDS.index(block.kind),
            norm=self._norm(block.norm),
            inputs=self._stage(first, block.inputs),
            out=self._stage(last, [block.out]),
        )

    def _norm(self, norm: Any, scale: float = 1.0) -> structures.Norm:
        bias = getattr(norm, "bias", None)
        return structures.Norm(self._floats(norm.weight * scale), None if bias is None else self._floats(bias * scale))

    def _stage(self, phase: str, linears: list[Any]) -> structures.Stage:
        first = linears[0]
        shared = getattr(first, "shared", None)
        matrices = [shared.matrix()] if shared else [_matrix(linear) for linear in linears]
        self._alive += matrices
        self._bytes[phase] += sum(matrix.bytes for matrix in matrices)
        parts = (ctypes.c_void_p * 3)(*[matrix.handle for matrix in matrices])
        return structures.Stage(parts, len(matrices), self._floats(getattr(first, "input_scale", None)))

    def _floats(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        kept = tensor.detach().float().contiguous()
        self._alive.append(kept)
        return int(kept.data_ptr())


_KINDS = list(PHASES)
_ALL_PHASES = [*itertools.chain.from_iterable(PHASES.values()), HEAD]


def _no_seconds() -> Any:
    return (ctypes.c_double * len(_ALL_PHASES))()


def _matrix(linear: nn.Module) -> Matrix:
    if isinstance(linear, EngineLinear):
        return linear.matrix()
    assert isinstance(linear, nn.Linear)
    shape = (linear.out_features, linear.in_features)
    packed = PackedWeight(shape, linear.weight.detach().float().reshape(-1), None, None, None)
    return Matrix(packed, None if linear.bias is None else linear.bias.detach().float())
