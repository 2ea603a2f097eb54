"""Backends of the benchmark: ways to run a checkpoint. A new one is one file and one line in `names`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from stages.benchmark.names import BACKENDS
from stages.benchmark.workloads import Sample
from stages.contracts import Checkpoint, UserError


class Runner(Protocol):
    """A model ready to generate, batch 1, greedy, with its key-value cache."""

    weight_bytes: int | None
    """Read from memory for each decoded token: all weights, scales and indices, but not the cache, and nothing of an
    encoder. None: not known."""
    note: str | None
    """What a reader of its row must know."""
    process: int | None
    """Id of the process that computes; None: this one."""

    def prefill(self, sample: Sample) -> int:
        """Runs a sample's encoder, if there is one, and its prompt from an empty cache; returns the next token."""

    def decode(self, token: int) -> int:
        """Runs one more token and returns the next."""


@runtime_checkable
class Searcher(Protocol):
    """A runner that also searches with several beams: those of encoder-decoders."""

    def search(self, sample: Sample, beams: int, new_tokens: int) -> None:
        """Encodes the sample and writes so many tokens, whatever they are."""


@dataclass(frozen=True)
class Unavailable:
    """This backend cannot run this model here. Shown as "n/a (reason)"."""

    reason: str


class Backend(Protocol):
    name: str
    quantized: bool
    """Runs what the quantize stage made of a model, not its floating-point checkpoint."""

    def prepare(self, checkpoint: Checkpoint, threads: int) -> Runner | Unavailable:
        """Loads a checkpoint into the form that this backend computes with."""


def get(name: str) -> Backend:
    """Raises UserError for an unknown name."""
    if name not in BACKENDS:
        raise UserError(f"no backend {name!r}; there are: {', '.join(BACKENDS)}", "benchmark.backends")
    module, _, cls = BACKENDS[name].partition(":")
    backend: Backend = getattr(importlib.import_module(module), cls)()
    assert backend.name == name
    return backend
