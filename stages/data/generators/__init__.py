"""Generators of data: items that are computed, not read. A file each.

A member defines `GENERATOR`. `data.path=generated` with a section `data.generator` names one. The same options, size
and seed make the same items on every machine. Its file is read when a run is planned: plain Python, no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Protocol, runtime_checkable

from stages.kinds import Kinds
from stages.options import Options


@runtime_checkable
class Generator(Protocol):
    options: type[GeneratorOptions]

    def items(self, options: Any, size: int, seed: int) -> Iterator[dict[str, Any]]:
        """Yields at most `size` different rows; fewer if there are no more."""


GENERATORS: Kinds[Generator] = Kinds("generator of data", __name__, "GENERATOR", "data.generator.name", Generator)


class GeneratorOptions(Options):
    """Options of a generator. A generator may add its own, each with a default."""

    name: Annotated[str, GENERATORS]
    """Name of the generator: a file of `stages/data/generators/`, or one that an installed package adds."""
