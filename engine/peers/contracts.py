"""The interface of a peer: a timed layer, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Unavailable:
    """A runtime cannot run this model or layer here. Shown as "n/a (reason)"."""

    reason: str


class TimedLayer(Protocol):
    """A linear layer, ready to run on input of its own."""

    def seconds(self, flush_bytes: int) -> float:
        """Returns the seconds of one call, measured where it runs. Before it, `flush_bytes` of other memory are read,
        so that the weights leave the last-level cache; 0: they stay. Raises EngineError when the runtime's process
        ends."""

    def close(self) -> None:
        """Ends the runtime's process."""


class LayerPeer(Protocol):
    @property
    def name(self) -> str: ...

    def prepare(self, W_OI: Any, tokens: int, threads: int) -> TimedLayer | Unavailable:
        """Returns the layer `y_TO = x_TI W_OIᵀ` for `tokens` rows. `W_OI` is numpy fp32, already pruned if it is to be
        sparse."""
