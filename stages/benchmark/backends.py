"""Backends of the benchmark: ways to run a checkpoint. A new one is one file and one line in `names`."""

from __future__ import annotations

import importlib
from typing import Protocol, runtime_checkable

from engine.bench.decoding import Runner
from engine.peers.contracts import Unavailable
from stages.benchmark.names import BACKENDS
from stages.benchmark.workloads import Sample
from stages.contracts import Checkpoint, UserError


@runtime_checkable
class Searcher(Protocol):
    """A runner that also searches with several beams: those of encoder-decoders."""

    def search(self, sample: Sample, beams: int, new_tokens: int) -> None:
        """Encodes the sample and writes so many tokens, whatever they are."""


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
