"""Backends of the benchmark: ways to run a checkpoint. A file each.

A member defines `BACKEND`. Its file is read when a run is planned, which must not import torch: it does so in
`prepare`. What backends of one runtime share is in `torch_backends`, `engine_backends` and `peer_backends`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from stages.kinds import Kinds

if TYPE_CHECKING:
    from engine.bench.decoding import Runner
    from engine.peers.contracts import Unavailable
    from stages.benchmark.workloads import Sample
    from stages.contracts import Checkpoint


@runtime_checkable
class Searcher(Protocol):
    """A runner that can also decode with beam search, for encoder-decoders."""

    def search(self, sample: Sample, beams: int, new_tokens: int) -> None:
        """Encodes the sample and decodes the given number of tokens, whatever they are."""


@runtime_checkable
class Backend(Protocol):
    quantized: bool
    """Whether it runs the quantize stage's checkpoint instead of the floating-point one."""
    exact: bool
    """Whether it computes what the evaluation of its checkpoint computed; others round further."""
    weight_bytes: float
    """Bytes of a weight in memory, for estimates."""

    def prepare(self, checkpoint: Checkpoint, threads: int) -> Runner | Unavailable:
        """Loads a checkpoint into the form that this backend computes with."""


BACKENDS: Kinds[Backend] = Kinds("backend", __name__, "BACKEND", "benchmark.backends", Backend)
